"""vLLM as a receiver."""

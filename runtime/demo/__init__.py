"""The demo: a real FSDP2 trainer updates FP8 engine replicas through a compiled, verified plan."""

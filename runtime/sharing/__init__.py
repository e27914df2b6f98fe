"""One process lets another on its host map the GPU memory that its tensors lie in."""

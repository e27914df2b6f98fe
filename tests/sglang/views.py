"""Random views of tensors, for tests of what recognizes them."""

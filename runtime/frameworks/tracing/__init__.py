"""Manifests from a model's own loading code, run on tensors that have no memory."""

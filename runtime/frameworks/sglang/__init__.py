"""SGLang as a receiver: manifests traced from its own models."""

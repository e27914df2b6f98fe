"""Manifests made offline, from a model's config.json and data files about models and frameworks."""

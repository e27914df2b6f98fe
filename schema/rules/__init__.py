"""The rules that `check.py` lists: what a JSON Schema cannot state about one document."""

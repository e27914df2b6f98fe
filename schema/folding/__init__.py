"""The steps of `fold.py`, which states the algorithm."""

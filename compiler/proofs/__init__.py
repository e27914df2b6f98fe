"""The proofs that `verify.py` lists, one a module, and what they read; see there."""

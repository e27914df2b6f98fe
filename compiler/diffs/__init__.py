"""The parts of `compiler/diff.py`: what of two documents is compared how."""

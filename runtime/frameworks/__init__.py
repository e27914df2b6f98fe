"""Declarations of live models of training and inference frameworks."""

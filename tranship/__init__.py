"""Compile what a trainer holds and what an inference engine needs into one verified plan."""

__version__ = "0.1.0"

"""The command line interface: `app.py` lists the verbs, and each has the file of its name."""

from tranship.cli.app import main

__all__ = ["main"]

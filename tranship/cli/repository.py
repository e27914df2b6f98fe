"""Where files are in their repository, as services that show findings beside the code want it."""

import os
from pathlib import Path

UNWRITTEN = " (not written)"
"""What marks the text of a file that a verb would have written."""


def repository_path(file: str) -> str | None:
    """Return a file's path from the top of its repository; None if it is in no working tree.

    Where there is no repository, the current folder counts as its top.
    """
    path = file.removesuffix(UNWRITTEN)
    if not path or "\0" in path or path.startswith("<"):
        return None
    if ":" in path and not os.path.lexists(path):
        return None
    absolute = Path(os.path.abspath(path))
    above = (folder for folder in absolute.parents if (folder / ".git").exists())
    top = next(above, Path.cwd())
    return absolute.relative_to(top).as_posix() if absolute.is_relative_to(top) else None

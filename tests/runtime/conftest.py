"""What tests of the runtime share."""

from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def short_folder() -> Generator[Path]:
    """An empty folder in whose paths there is room for sockets, unlike in `tmp_path`."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)

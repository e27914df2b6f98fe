"""The small example in a folder of its own, which is the current one."""

from pathlib import Path

import pytest

from tests.cli.example import write_example
from tests.cli.outcome import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the transfer file and its inputs, without a plan."""
    write_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def compiled(folder: Path) -> Path:
    """The same folder with the plan."""
    assert run("compile", "small.transfer.toml").status == 0
    return folder

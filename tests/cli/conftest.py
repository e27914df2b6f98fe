"""The small example in a folder of its own, which is the current one."""

from pathlib import Path

import pytest

from tests.cli.example import write_example
from tests.cli.outcome import contents, run


@pytest.fixture(scope="session")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The example's files and the plan, byte for byte."""
    original = tmp_path_factory.mktemp("example")
    write_example(original)
    assert run("compile", str(original / "small.transfer.toml")).status == 0
    return contents(original)


@pytest.fixture
def compiled(tmp_path: Path, valid: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the transfer file, its inputs and the plan."""
    for name, data in valid.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(compiled: Path) -> Path:
    """The same folder without the plan."""
    (compiled / "small.plan.json").unlink()
    return compiled

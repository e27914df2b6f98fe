"""Every case of `cases.py`, traced and loaded once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vllm.cases import Case
from tests.vllm.results import Result

FOLDER = Path(__file__).parent


def environment() -> dict[str, str]:
    """Return an environment in which a script finds the tests, and what this process finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), *sys.path])}


def run_script(name: str, folder: Path) -> None:
    """Run one of the scripts beside this file, which leaves what it found in a folder."""
    command = [sys.executable, str(FOLDER / name), str(folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Case], Result]]:
    """Run vLLM on all cases, and return what finds the results of one."""
    folder = tmp_path_factory.mktemp("engines")
    run_script("engines.py", folder)
    yield lambda case: Result(case, folder / case.title)
    shutil.rmtree(folder)

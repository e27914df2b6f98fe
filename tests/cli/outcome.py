"""Run the command line in this process, as a terminal-less shell would."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from tranship.cli.app import app


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


def run(*arguments: str) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(list(arguments), prog_name="tranship")
        except SystemExit as leaving:
            status = leaving.code
        else:
            status = 0
    assert isinstance(status, int)
    return Outcome(status, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}

"""Files of the working tree or of a git revision, `REV:path` as git writes it."""

import os
import posixpath
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel

from tranship.cli.load import check_document, parse_any, raise_errors
from tranship.schema.codec import Document, read_text
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location


@dataclass(frozen=True)
class Spot:
    """Where a document is: a path, in a git revision or (None) in the working tree."""

    revision: str | None
    path: str

    def __str__(self) -> str:
        return self.path if self.revision is None else f"{self.revision}:{self.path}"

    def beside(self, relative: str) -> "Spot":
        """Find what a document at this spot names by a path relative to its own folder."""
        if self.revision is None:
            return Spot(None, str(Path(self.path).parent / relative))
        joined = posixpath.normpath(posixpath.join(posixpath.dirname(self.path), relative))
        is_relative = self.path.startswith(("./", "../")) and not joined.startswith("../")
        return Spot(self.revision, f"./{joined}" if is_relative else joined)


def spot(text: str) -> Spot:
    """Read a path or `REV:path`; a file that is there is a path, whatever it is called."""
    revision, colon, path = text.partition(":")
    if not colon or "\0" in text or os.path.lexists(text):
        return Spot(None, text)
    return Spot(revision, path)


def read_spot(place: Spot) -> Document[BaseModel]:
    """Read and check a document of any format.

    Raises:
        DiagnosticError: it cannot be read (TS100 to TS109, TS910 to TS913), or is wrong.
    """
    text = read_text(place.path) if place.revision is None else _committed(place)
    document = parse_any(text, str(place))
    raise_errors(check_document(document.value, document.source))
    return document


def _committed(place: Spot) -> str:
    """Return the text of a file in a revision."""
    revision = place.revision or ""
    if _git(place, "rev-parse", "--git-dir").returncode:
        _refuse("TS911", place, "the current folder is not in a git repository")
    wanted = f"{revision}^{{tree}}"
    if revision.startswith("-") or (
        revision and _git(place, "rev-parse", "--verify", "--quiet", wanted).returncode
    ):
        _refuse("TS912", place, f"git knows no revision {revision!r} here")
    found = _git(place, "cat-file", "blob", str(place))
    if found.returncode:
        _refuse_path(place)
    try:
        return found.stdout.decode("utf-8")
    except UnicodeDecodeError:
        _refuse("TS101", place, "the file in this revision is not UTF-8")


def _refuse_path(place: Spot) -> NoReturn:
    """Say that a path is not in a revision; git counts it from the top of the repository."""
    here = Spot(place.revision, f"./{place.path}")
    is_here = _git(here, "cat-file", "-e", str(here)).returncode == 0
    advice = "a path counts from the top of the repository; begin with ./ for this folder"
    _refuse(
        "TS913",
        place,
        f"the revision has no file {place.path!r}",
        advice,
        suggestion=str(here) if is_here else None,
    )


def _refuse(
    code: str, place: Spot, message: str, advice: str | None = None, suggestion: str | None = None
) -> NoReturn:
    at = Location(str(place))
    raise DiagnosticError([Diagnostic(code, message, at, help=advice, suggestion=suggestion)])


def _git(place: Spot, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=False, env=environment)
    except OSError as error:
        message = f"git cannot be run: {(error.strerror or str(error)).lower()}"
        raise DiagnosticError([Diagnostic("TS910", message, Location(str(place)))]) from None

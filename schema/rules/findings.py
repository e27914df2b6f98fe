"""What a rule finds, before it is placed in a file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from tranship.schema.canonical import Path
from tranship.schema.diagnostics import Diagnostic, Label, Location
from tranship.schema.positions import Source, join_pointer

T = TypeVar("T")

Rule = Callable[[T], "Iterator[Finding]"]
"""A rule yields everything that is wrong with a document in its respect."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding at `path` of a document; most other fields are those of `Diagnostic`.

    `first` is the path of what this repeats.
    """

    code: str
    path: Path
    message: str
    expected: str | None = None
    found: str | None = None
    help: str | None = None
    suggestion: str | None = None
    first: Path | None = None

    def under(self, path: Path) -> "Finding":
        """The same finding in a document that holds this one at `path`."""
        return replace(self, path=path + self.path)


def diagnostic(finding: Finding, source: Source | None, file: str) -> Diagnostic:
    """Place a finding: with line and column where the text is at hand, else by its pointer."""

    def place(path: Path) -> Location:
        pointer = join_pointer(path)
        return source.locate(pointer) if source else Location(file, pointer)

    first = finding.first
    return Diagnostic(
        code=finding.code,
        message=finding.message,
        at=place(finding.path),
        expected=finding.expected,
        found=finding.found,
        labels=() if first is None else (Label(place(first), "first here"),),
        help=finding.help,
        suggestion=finding.suggestion,
    )

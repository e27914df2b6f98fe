"""What a rule finds, before it is placed in a file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tranship.schema.canonical import Path
from tranship.schema.diagnostics import Diagnostic, Location
from tranship.schema.positions import Source, join_pointer

T = TypeVar("T")

Rule = Callable[[T], "Iterator[Finding]"]
"""A rule yields everything that is wrong with a document in its respect."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding at `path` of a document; the other fields are those of `Diagnostic`."""

    code: str
    path: Path
    message: str
    expected: str | None = None
    found: str | None = None
    help: str | None = None
    suggestion: str | None = None

    def under(self, path: Path) -> "Finding":
        """The same finding in a document that holds this one at `path`."""
        return Finding(
            self.code,
            path + self.path,
            self.message,
            self.expected,
            self.found,
            self.help,
            self.suggestion,
        )


def diagnostic(finding: Finding, source: Source | None, file: str) -> Diagnostic:
    """Place a finding: with line and column where the text is at hand, else by its pointer."""
    pointer = join_pointer(finding.path)
    return Diagnostic(
        code=finding.code,
        message=finding.message,
        at=source.locate(pointer) if source else Location(file, pointer),
        expected=finding.expected,
        found=finding.found,
        help=finding.help,
        suggestion=finding.suggestion,
    )

"""Diagnostics: what is wrong with an input, as data; `render.py` turns them into text."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file: a JSON pointer, and a line and column where the text is at hand.

    `line` and `column` count from 1; columns count characters, and lines end in LF. The pointer ""
    is the whole document. TOML documents have JSON pointers too.
    """

    file: str
    pointer: str = ""
    line: int | None = None
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """A second place that a diagnostic is about, and what is there."""

    at: Location
    text: str


class Severity(StrEnum):
    """Whether a diagnostic stops the work."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding.

    `code` names a page of `explanations/`. `message` is lower case, names the thing and both
    values. `help` says what to do, `suggestion` is text that can be pasted.
    """

    code: str
    message: str
    at: Location | None = None
    severity: Severity = Severity.ERROR
    expected: str | None = None
    found: str | None = None
    labels: tuple[Label, ...] = ()
    help: str | None = None
    suggestion: str | None = None


class DiagnosticError(Exception):
    """Input that cannot be used, with everything that was found wrong with it."""

    diagnostics: tuple[Diagnostic, ...]
    """What was found, in the order found; never empty."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        if not self.diagnostics:
            raise ValueError("a DiagnosticError needs a diagnostic")
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return "\n".join(_one_line(diagnostic) for diagnostic in self.diagnostics)


def _one_line(diagnostic: Diagnostic) -> str:
    if diagnostic.at is None:
        return f"{diagnostic.code}: {diagnostic.message}"
    return f"{place(diagnostic.at)}: {diagnostic.code}: {diagnostic.message}"


def place(at: Location) -> str:
    """Write a location as `file:line:column`, without what is not known."""
    return ":".join([at.file, *(str(n) for n in (at.line, at.column) if n is not None)])


def sort_key(diagnostic: Diagnostic) -> tuple[str, bool, int, str, int, str, str]:
    """Order diagnostics by file, line, code; those without a line come last in their file."""
    at = diagnostic.at or Location("")
    return (
        at.file,
        at.line is None,
        at.line or 0,
        diagnostic.code,
        at.column or 0,
        at.pointer,
        diagnostic.message,
    )


MAX_REPORTED = 100
"""Most findings of one kind that are reported one by one."""

T = TypeVar("T")


def report_first(
    found: Sequence[T], report: Callable[[T], Diagnostic], file: str
) -> tuple[Diagnostic, ...]:
    """Report the first `MAX_REPORTED` findings, and how many more there are (TS118)."""
    reports = tuple(report(finding) for finding in found[:MAX_REPORTED])
    more = len(found) - len(reports)
    if not more:
        return reports
    what = "error" if more == 1 else "errors"
    return (*reports, Diagnostic("TS118", f"{more:,} more {what} are not shown", Location(file)))


_PAGE = re.compile(r"(TS\d{3})\.md")


def _pages() -> Traversable:
    return files("tranship.schema") / "explanations"


@cache
def known_codes() -> tuple[str, ...]:
    """Return all codes that have a page, sorted."""
    matches = (_PAGE.fullmatch(page.name) for page in _pages().iterdir())
    return tuple(sorted(match[1] for match in matches if match))


@cache
def explanation(code: str) -> str:
    """Return the page about `code`, in Markdown.

    Raises:
        KeyError: there is no such code.
    """
    if code not in known_codes():
        raise KeyError(code)
    return (_pages() / f"{code}.md").read_text(encoding="utf-8")


@cache
def title(code: str) -> str:
    """Return the heading of the page about `code`.

    Raises:
        KeyError: there is no such code.
    """
    return explanation(code).partition("\n")[0].removeprefix("#").strip()

"""What every verb has in common: streams, formats, exit statuses, and what happens on failure.

A verb is a function that returns an `Answer`; it prints nothing. The answer goes to stdout and
diagnostics go to stderr; in the formats for machines one text on stdout holds both.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import TextIO

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from tranship.cli.github import workflow_commands
from tranship.cli.markdown import markdown
from tranship.cli.notice import Notice
from tranship.cli.sarif import sarif
from tranship.schema.canonical import Json, canonical_bytes
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Severity, sort_key
from tranship.schema.render import render_human, render_json

TRACEBACK_VARIABLE = "TRANSHIP_TRACEBACK"
"""Set to 1 in the environment, an internal error shows where it happened."""

PLAIN_WIDTH = 100
"""Columns to write for where there is no terminal to ask."""


class Status(IntEnum):
    """What an exit status means. Files in other repositories depend on these: they never change."""

    OK = 0
    FINDINGS = 1
    FAILED = 2
    DIFFERENT = 3
    INTERRUPTED = 130


class Format(StrEnum):
    """For whom the answer is written."""

    HUMAN = "human"
    JSON = "json"


class ReportFormat(StrEnum):
    """For whom the answer of a verb is written that reports on files."""

    HUMAN = "human"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"
    MARKDOWN = "markdown"


class Strictness(StrEnum):
    """What a warning counts as."""

    DEFAULT = "default"
    ERROR = "error"


@dataclass(frozen=True)
class Reporting:
    """How to report.

    Attributes:
        form: for whom the answer is written.
        max_errors: the most errors to show; 0 for all of them.
        is_strict: whether a warning counts as an error.
    """

    form: Format | ReportFormat
    max_errors: int = 0
    is_strict: bool = False


@dataclass(frozen=True)
class Answer:
    """What a verb found.

    Attributes:
        page: the answer for people, line by line.
        document: the answer for programs; the diagnostics are added to it.
        status: the exit status if no diagnostic is an error.
        diagnostics: what is wrong with the input.
        hint: what to do next, a line for people.
        notices: the answer as lines about places in files, where it is such.
        table: what there was before and is after, by name.
    """

    page: Sequence[RenderableType] = ()
    document: Mapping[str, Json] = field(default_factory=dict[str, Json])
    status: int = Status.OK
    diagnostics: tuple[Diagnostic, ...] = ()
    hint: str = ""
    notices: tuple[Notice, ...] = ()
    table: tuple[tuple[str, str, str], ...] = ()


_FAILURES = ("TS100", "TS109")
"""From the first to the last: the file could not be had, so that nothing can be said about it."""

_INTERNAL = "TS900"
_OWN_TROUBLE = "TS9"


def exit_status(answer: Answer) -> int:
    """Return what the process exits with: the worst of what the diagnostics and the verb say.

    A file that could not be read, parsed or written (TS100 to TS109) and trouble of tranship's own
    (TS9nn) count as failures, any other error as a finding.
    """
    errors = [one.code for one in answer.diagnostics if one.severity is Severity.ERROR]
    first, last = _FAILURES
    if any(first <= code <= last or code.startswith(_OWN_TROUBLE) for code in errors):
        return Status.FAILED
    return Status.FINDINGS if errors else answer.status


def deliver(verb: Callable[[], Answer], how: Format | Reporting) -> None:
    """Run a verb, write its answer, and leave with its status. Nothing gets past but that.

    Raises:
        typer.Exit: always, with the status.
        typer.BadParameter: the verb found its arguments to contradict one another.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        written = _attempt(verb, how if isinstance(how, Reporting) else Reporting(how))
        status = _write(written) or written.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = Status.INTERRUPTED
    raise typer.Exit(status)


@dataclass(frozen=True)
class _Written:
    """An answer as text for both streams, and the exit status."""

    out: str
    err: str
    status: int


def _attempt(verb: Callable[[], Answer], how: Reporting) -> _Written:
    try:
        return _as_text(_ask(verb), how)
    except typer.BadParameter:
        raise
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        return _as_text(Answer(diagnostics=(_internal(error),)), how)


def _ask(verb: Callable[[], Answer]) -> Answer:
    try:
        return verb()
    except DiagnosticError as error:
        return Answer(diagnostics=error.diagnostics)


def _internal(error: Exception) -> Diagnostic:
    text = " ".join(str(error).split())
    return Diagnostic(
        _INTERNAL,
        f"{type(error).__name__}: {text}" if text else type(error).__name__,
        help="this is a fault of tranship; the same command shows where it happened with "
        f"{TRACEBACK_VARIABLE}=1 in the environment",
    )


def _as_text(answer: Answer, how: Reporting) -> _Written:
    found = promoted(answer.diagnostics) if how.is_strict else answer.diagnostics
    status = exit_status(replace(answer, diagnostics=found))
    answer = replace(answer, diagnostics=_first(found, how.max_errors))
    if how.form == ReportFormat.HUMAN:
        return _Written(rendered(answer.page, console(sys.stdout)), _reports(answer), status)
    return _Written(_for_machines(answer, how.form), "", status)


def promoted(found: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Make errors of warnings."""
    return tuple(replace(one, severity=Severity.ERROR) for one in found)


def _first(found: Sequence[Diagnostic], most: int) -> tuple[Diagnostic, ...]:
    """Keep all warnings and the first errors, and say how many more there are (TS118)."""
    errors = sorted((one for one in found if one.severity is Severity.ERROR), key=sort_key)
    if not most or len(errors) <= most:
        return tuple(found)
    more = len(errors) - most
    text = f"{more:,} more {'error is' if more == 1 else 'errors are'} not shown"
    rest = Diagnostic("TS118", text, help="--max-errors 0 shows all of them")
    return (*(one for one in found if one.severity is not Severity.ERROR), *errors[:most], rest)


def _for_machines(answer: Answer, form: Format | ReportFormat) -> str:
    """Write an answer and what was found wrong as one text."""
    if form == ReportFormat.JSON:
        reports = json.loads(render_json(answer.diagnostics))
        return canonical_bytes(_unicode({**answer.document, **reports})).decode()
    if form == ReportFormat.SARIF:
        return canonical_bytes(sarif(answer.diagnostics)).decode()
    lines = [*answer.page, Text(answer.hint)] if answer.hint else answer.page
    page = rendered(lines, Console(file=StringIO(), no_color=True))
    if form == ReportFormat.GITHUB:
        commands = workflow_commands(answer.diagnostics, answer.notices)
        return page + "".join(f"{command}\n" for command in commands)
    return markdown(page, answer.diagnostics, answer.notices, answer.table)


def _unicode(value: Json) -> Json:
    """Write what UTF-8 has no bytes for, as in file names of other encodings, with a backslash."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {key: _unicode(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_unicode(inner) for inner in value]
        case _:
            return value


def _write(written: _Written) -> Status:
    """Write to both streams; return FAILED if stdout does not take it.

    A reader who has seen enough and left, as `head` does, is no failure.
    """
    try:
        _print(written.out, sys.stdout)
    except OSError as error:
        # What Python still holds back for the stream would raise the same again on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _print(f"stdout cannot be written: {error.strerror}\n", sys.stderr)
            return Status.FAILED
    _print(written.err, sys.stderr)
    return Status.OK


def _print(text: str, stream: TextIO) -> None:
    stream.write(text)
    stream.flush()


def _reports(answer: Answer) -> str:
    if not answer.diagnostics:
        return f"{answer.hint}\n" if answer.hint else ""
    terminal = console(sys.stderr)
    text = render_human(
        answer.diagnostics,
        sources=_sources(answer.diagnostics),
        color=terminal.is_terminal and not terminal.no_color,
        width=width(terminal),
    )
    return f"{text}{answer.hint}\n" if answer.hint else text


def _sources(diagnostics: Iterable[Diagnostic]) -> dict[str, str]:
    """Read again the files that have lines to show."""
    named = {one.at.file for one in diagnostics if one.at and one.at.line is not None}
    texts: dict[str, str] = {}
    for file in named:
        try:
            texts[file] = Path(file).read_bytes().decode("utf-8", "replace")
        except (OSError, ValueError):
            continue
    return texts


def console(stream: TextIO) -> Console:
    """Return a console for `stream`: rich decides from it and the environment about colors."""
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def width(terminal: Console) -> int:
    """Return how many columns to write for; the same wherever there is no terminal."""
    return terminal.width if terminal.is_terminal else PLAIN_WIDTH


def answer_width() -> int:
    """Return how many columns an answer on stdout may take."""
    return width(console(sys.stdout))


def tick() -> str:
    """Return a check mark, or `ok` where stdout cannot write one."""
    return "\N{CHECK MARK}" if (sys.stdout.encoding or "").lower().startswith("utf") else "ok"


def rendered(page: Iterable[RenderableType], terminal: Console) -> str:
    """Write lines as text, in colors if the terminal has them; a line of text is never wrapped."""
    text = StringIO()
    like = Console(
        file=text,
        force_terminal=terminal.is_terminal,
        no_color=terminal.no_color,
        width=width(terminal),
        highlight=False,
        markup=False,
        emoji=False,
    )
    for line in page:
        like.print(line, soft_wrap=isinstance(line, Text))
    return text.getvalue()

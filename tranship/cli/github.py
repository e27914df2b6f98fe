"""Workflow commands of GitHub Actions: findings as annotations of the lines that they are about.

Source of the syntax and its escapes: actions/toolkit, packages/core/src/command.ts.
"""

from collections.abc import Iterable, Iterator

from tranship.cli.notice import Notice
from tranship.cli.repository import repository_path
from tranship.schema.diagnostics import Diagnostic, Location, Severity, sort_key, title

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning"}


def workflow_commands(
    diagnostics: Iterable[Diagnostic], notices: Iterable[Notice]
) -> Iterator[str]:
    """Write a line for every diagnostic, sorted by place, and for every notice."""
    for one in sorted(diagnostics, key=sort_key):
        head = f"{one.code}: {title(one.code)}"
        yield _command(_LEVELS[one.severity], head, _message(one), one.at)
    for notice in notices:
        level = "warning" if notice.is_urgent else "notice"
        yield _command(level, notice.title, notice.text, notice.at)


def _message(diagnostic: Diagnostic) -> str:
    lines = [diagnostic.message]
    lines += [f"help: {diagnostic.help}"] if diagnostic.help else []
    lines += [f"suggestion: {diagnostic.suggestion}"] if diagnostic.suggestion else []
    return "\n".join(lines)


def _command(level: str, head: str, message: str, at: Location | None) -> str:
    path = repository_path(at.file) if at else None
    properties = {"file": path, "line": at.line, "col": at.column} if at and path else {}
    named = {**properties, "title": head}
    text = ",".join(f"{k}={_property(str(v))}" for k, v in named.items() if v is not None)
    return f"::{level} {text}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

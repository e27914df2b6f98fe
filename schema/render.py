"""Diagnostics as text for people and as one JSON document for machines."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tranship.schema.canonical import Json, canonical_bytes
from tranship.schema.diagnostics import (
    Diagnostic,
    Location,
    Severity,
    place,
    sort_key,
    title,
)

MIN_WIDTH = 40
"""Narrower terminals are written to as if they had this many columns."""

_COLOR = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow"}
_EDGE = "bold blue"
_CUT = "..."


def render_human(
    diagnostics: Iterable[Diagnostic], *, sources: Mapping[str, str], color: bool, width: int
) -> str:
    """Write diagnostics for a terminal of `width` columns, sorted by place, with a count below.

    `sources` holds the text of the files by name; where it has the file of a diagnostic, the line
    is shown with the place marked. What can be pasted is never wrapped. A code's page is named
    where the code first occurs.
    """
    found = sorted(diagnostics, key=sort_key)
    lines = {file: text.split("\n") for file, text in sources.items()}
    explained = set[str]()
    page = list[Text]()
    for diagnostic in found:
        page += _report(diagnostic, lines, max(width, MIN_WIDTH))
        if diagnostic.code not in explained:
            explained.add(diagnostic.code)
            page.append(_note("explain", f"tranship explain {diagnostic.code}"))
        page.append(Text())
    page.append(Text(_count(found)))
    return _print(page, color=color)


def render_json(diagnostics: Iterable[Diagnostic]) -> str:
    """Write diagnostics, sorted by place, as `{"diagnostics": [...]}`, one on each line.

    Every diagnostic has the same keys; what it does not say is null.
    """
    members: list[Json] = [_members(diagnostic) for diagnostic in sorted(diagnostics, key=sort_key)]
    return canonical_bytes({"diagnostics": members}).decode()


def _print(page: Iterable[Text], *, color: bool) -> str:
    console = Console(
        file=StringIO(),
        force_terminal=color,
        color_system="standard" if color else None,
        legacy_windows=False,
        _environ={},  # the caller alone chooses about colors
    )
    with console.capture() as capture:
        for line in page:
            console.print(line, soft_wrap=True)
    return capture.get()


def _report(diagnostic: Diagnostic, lines: Mapping[str, list[str]], width: int) -> Iterator[Text]:
    color = _COLOR[diagnostic.severity]
    head = f"{diagnostic.severity}[{diagnostic.code}]"
    yield Text.assemble((head, color), (f": {title(diagnostic.code)}", "bold"))
    yield from _wrap(Text("  "), diagnostic.message, width)
    at = diagnostic.at
    if at is not None:
        yield _arrow("-->", at, f"#{at.pointer}" if at.pointer else "")
        yield from _excerpt(at, lines.get(at.file, []), color, width)
    for label in diagnostic.labels:
        yield _arrow(":::", label.at, label.text)
    yield from _notes(diagnostic, width)


def _arrow(arrow: str, at: Location, text: str) -> Text:
    line = Text.assemble("  ", (arrow, _EDGE), f" {_printable(place(at))}")
    return line.append(f"  {_printable(text)}") if text else line


def _excerpt(at: Location, lines: list[str], color: str, width: int) -> Iterator[Text]:
    """Show the line of `at`, cut to the width around its column, with what is there underlined."""
    if at.line is None or at.column is None or at.line > len(lines):
        return
    gutter = " " * len(str(at.line))
    line = _printable(lines[at.line - 1].rstrip("\r"))
    shown, start, end = _cut(line, at.column - 1, width - len(gutter) - 3)
    marks = " " * cell_len(shown[:start]) + "^" * max(cell_len(shown[start:end]), 1)
    yield Text(f"{gutter} |", _EDGE)
    yield Text.assemble((f"{at.line} |", _EDGE), f" {shown}")
    yield Text.assemble((f"{gutter} |", _EDGE), (f" {marks}", color))


_TOKEN = re.compile(r""""(?:[^"\\]|\\.)*+"?|'[^']*+'?|[^\s,:=\[\]{}"']++|.?""")


def _cut(line: str, start: int, room: int) -> tuple[str, int, int]:
    """Cut `line` to `room` characters around `start`; return it and the span of the token there."""
    token = _TOKEN.match(line, start)
    end = token.end() if token else start
    if len(line) <= room:
        return line, start, end
    room -= 2 * len(_CUT)
    first = start - room // 3 if start > room * 2 // 3 else 0
    head = _CUT if first else ""
    body = head + line[first : first + room]
    moved = len(head) - first
    tail = _CUT if first + room < len(line) else ""
    return body + tail, start + moved, min(end + moved, len(body))


def _notes(diagnostic: Diagnostic, width: int) -> Iterator[Text]:
    """Write what the message does not say already; a suggestion as it is to be pasted."""
    said = diagnostic.message
    for name, text in (("expected", diagnostic.expected), ("found", diagnostic.found)):
        if text and text not in said:
            yield from _wrap(_note(name), text, width)
    if diagnostic.help:
        yield from _wrap(_note("help"), diagnostic.help, width)
        said += diagnostic.help
    if diagnostic.suggestion and diagnostic.suggestion not in said:
        yield _note("suggestion")
        yield from (Text(f"      {_printable(x)}") for x in diagnostic.suggestion.split("\n"))


def _note(name: str, text: str = "") -> Text:
    return Text.assemble(("  = ", _EDGE), (f"{name}:", "bold"), f" {text}" if text else "")


def _wrap(prefix: Text, text: str, width: int) -> Iterator[Text]:
    """Wrap `text` behind `prefix`, its further lines indented; long words stay whole."""
    if prefix.plain.strip():
        prefix = prefix + Text(" ")
    indent = " " * len(prefix)
    lines = [
        line
        for paragraph in text.split("\n")
        for line in textwrap.wrap(
            _printable(paragraph),
            width - len(prefix),
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    for number, line in enumerate(lines):
        yield Text.assemble(indent, line) if number else Text.assemble(prefix, line)


def _printable(text: str) -> str:
    """Replace, one by one, the characters that would move the cursor or not show."""
    return "".join(c if c.isprintable() else " " if c == "\t" else "?" for c in text)


def _count(found: list[Diagnostic]) -> str:
    counts = [
        f"{count:,} {severity}{'s' * (count != 1)}"
        for severity in Severity
        if (count := sum(one.severity is severity for one in found))
    ]
    return ", ".join(counts) or "no errors"


def _members(diagnostic: Diagnostic) -> dict[str, Json]:
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "title": title(diagnostic.code),
        "message": _unicode(diagnostic.message),
        **_address(diagnostic.at or Location("")),
        "expected": _unicode(diagnostic.expected),
        "found": _unicode(diagnostic.found),
        "labels": [
            {**_address(label.at), "text": _unicode(label.text)} for label in diagnostic.labels
        ],
        "help": _unicode(diagnostic.help),
        "suggestion": _unicode(diagnostic.suggestion),
    }


def _address(at: Location) -> dict[str, Json]:
    return {
        "file": _unicode(at.file) or None,
        "pointer": _unicode(at.pointer),
        "line": at.line,
        "column": at.column,
    }


def _unicode(text: str | None) -> str | None:
    r"""Write what UTF-8 cannot, as in file names of other encodings, as `\udcff`."""
    return text and text.encode("utf-8", "backslashreplace").decode()

"""An answer as Markdown, for a job summary or a comment on a pull request.

Names and messages stand in code spans: nothing in them is markup, a mention or a link.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from tranship.cli.notice import Notice
from tranship.cli.repository import repository_path
from tranship.schema.diagnostics import Diagnostic, Location, place, sort_key, title

Row = tuple[str, str, str]


def markdown(
    page: str, diagnostics: Sequence[Diagnostic], notices: Sequence[Notice], table: Sequence[Row]
) -> str:
    """Write an answer: `page` in words, or its notices; then what was found wrong."""
    lines = [page.split("\n")[0], ""] if notices else [*_fenced(page)] if page else []
    if notices:
        lines[0] = f"### {code_span(lines[0].strip())}"
        lines += _lists(notices)
    if table:
        lines += _table(("", "before", "after"), [(name, old, new) for name, old, new in table])
    if diagnostics:
        rows = [
            (f"{one.severity} {one.code}", title(one.code), _place(one.at), _message(one))
            for one in sorted(diagnostics, key=sort_key)
        ]
        lines += _table(("", "what", "where", "details"), rows)
    return "\n".join(lines).rstrip("\n") + "\n"


def _lists(notices: Sequence[Notice]) -> Iterator[str]:
    urgent = [notice for notice in notices if notice.is_urgent]
    if urgent:
        yield from ("**To approve**", "")
        yield from (f"- {code_span(notice.text)}" for notice in urgent)
        yield ""
    rest = [notice for notice in notices if not notice.is_urgent]
    for head, own in groupby(rest, key=lambda notice: notice.title):
        yield from (f"**{head}**", "")
        yield from (f"- {code_span(notice.text)}" for notice in own)
        yield ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(text) for text in row)} |"
    yield ""


def _cell(text: str) -> str:
    return code_span(text).replace("|", "\\|") if text else ""


def _place(at: Location | None) -> str:
    if at is None:
        return ""
    return place(Location(repository_path(at.file) or at.file, "", at.line, at.column))


def _message(diagnostic: Diagnostic) -> str:
    advice = f"; help: {diagnostic.help}" if diagnostic.help else ""
    return f"{diagnostic.message}{advice}"


def code_span(text: str) -> str:
    """Write text as a code span, whatever backticks are in it."""
    text = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _fenced(page: str) -> Iterator[str]:
    longest = max((len(run) for run in re.findall("`+", page)), default=0)
    fence = "`" * max(3, longest + 1)
    yield f"{fence}text"
    yield from page.rstrip("\n").split("\n")
    yield from (fence, "")

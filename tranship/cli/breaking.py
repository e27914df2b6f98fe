"""`tranship breaking`: which changes of a manifest break the plans made with the older one."""

from collections.abc import Iterator

import typer
from pydantic import BaseModel
from rich.text import Text

from tranship.cli.changes import Section, change_members, section_lines, sentence
from tranship.cli.layout import BAD, GOOD, HEAD, count, flow
from tranship.cli.output import Answer, answer_width
from tranship.cli.revision import read_spot, spot
from tranship.compiler.diff import Change, diff_manifests
from tranship.compiler.diffs.breaking import breaking_code
from tranship.schema.codec import Document
from tranship.schema.diagnostics import Diagnostic, Label
from tranship.schema.manifest import Manifest


def run(manifest: str, against: str) -> Answer:
    """Compare a manifest with an older one; breaking changes are findings.

    Raises:
        DiagnosticError: one of them cannot be read or is wrong.
        typer.BadParameter: one of them is no manifest.
    """
    old, new = read_spot(spot(against)), read_spot(spot(manifest))
    before, after = _manifest(old), _manifest(new)
    changes = diff_manifests(before, after)
    coded = [(change, breaking_code(change, after.side)) for change in changes]
    section = Section("", changes, old.source, new.source)
    found = tuple(
        _finding(section, change, code) for change, code in coded if code and not change.follows
    )
    harmless = tuple(change for change, code in coded if not code)
    return Answer(
        [*_lines(manifest, against, found, Section("", harmless, old.source, new.source))],
        {
            "manifest": manifest,
            "against": against,
            "compatible": change_members(Section("", harmless, None, None)),
        },
        diagnostics=found,
    )


def _manifest(document: Document[BaseModel]) -> Manifest:
    if not isinstance(document.value, Manifest):
        raise typer.BadParameter(f"{document.source.file} is not a manifest")
    return document.value


def _finding(section: Section, change: Change, code: str) -> Diagnostic:
    at = section.place(change)
    labels: tuple[Label, ...] = ()
    if change.new is None and at and section.new:
        labels = (Label(at, "it was here"),)
        at = section.new.locate("")
    return Diagnostic(code, sentence(change), at, labels=labels)


def _lines(
    manifest: str, against: str, found: tuple[Diagnostic, ...], harmless: Section
) -> Iterator[Text]:
    width = answer_width()
    number = count(len(found), "breaking change")
    verdict = (number, BAD) if found else ("nothing breaks", GOOD)
    more = f"{len(harmless.changes):,} compatible" if harmless.changes else ""
    yield from flow(f"{manifest}  ", [verdict, more, f"against {against}"], width)
    if harmless.changes:
        yield Text()
        yield from flow(("compatible", HEAD), [], width)
        yield from section_lines(harmless, width)

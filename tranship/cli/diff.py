"""`tranship diff`: what a change of a document means."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from rich.text import Text

from tranship.cli.changes import (
    Section,
    change_members,
    notices,
    section_lines,
)
from tranship.cli.layout import GOOD, HEAD, count, flow
from tranship.cli.load import format_of
from tranship.cli.output import Answer, Status, answer_width
from tranship.cli.revision import Spot, read_spot, spot
from tranship.cli.traffic import Traffic, traffic_members, traffic_of, traffic_rows
from tranship.compiler.diff import (
    Change,
    diff_manifests,
    diff_placements,
    diff_plans,
    diff_policies,
    diff_transfers,
)
from tranship.schema.canonical import Json
from tranship.schema.codec import Document
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Label
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Transfer

M = TypeVar("M", bound=BaseModel)

_DIFFS: dict[type[BaseModel], Callable[[Any, Any], tuple[Change, ...]]] = {
    Manifest: diff_manifests,
    Placement: diff_placements,
    TransferPlan: diff_plans,
    Policy: diff_policies,
    Transfer: diff_transfers,
}
_NAMED: dict[str, type[BaseModel]] = {
    "policy": Policy,
    "sender": Manifest,
    "receiver": Manifest,
    "placement": Placement,
}
"""What a transfer file names, in the order in which a reviewer should look."""


@dataclass(frozen=True)
class Comparison:
    """Two documents of one kind compared, part by part, and what the plans move if they are."""

    sections: tuple[Section, ...]
    traffic: tuple[Traffic, Traffic] | None = None

    @property
    def count(self) -> int:
        """How many changes there are."""
        return sum(len(section.changes) for section in self.sections)


def run(old: str, new: str) -> Answer:
    """Compare two documents, each a path or `REV:path`.

    Raises:
        DiagnosticError: one cannot be read or is wrong, or they are of different kinds.
    """
    first, second = spot(old), spot(new)
    return answer(first, read_spot(first), second, read_spot(second))


def answer(
    first: Spot, before: Document[BaseModel], second: Spot, after: Document[BaseModel]
) -> Answer:
    """Tell what the change from one document to another means.

    Raises:
        DiagnosticError: as `compare`.
    """
    found = compare(first, before, second, after)
    verdict = (count(found.count, "change"), HEAD) if found.count else ("no change", GOOD)
    width = answer_width()
    page = [
        *flow(f"{first} -> {second}  ", [verdict], width),
        *comparison_lines(found, width),
    ]
    return Answer(
        page,
        {"old": str(first), "new": str(second), **comparison_members(found)},
        Status.DIFFERENT if found.count else Status.OK,
        notices=tuple(notice for section in found.sections for notice in notices(section)),
        table=tuple(traffic_rows(*found.traffic)) if found.traffic else (),
    )


def compare(
    first: Spot, before: Document[BaseModel], second: Spot, after: Document[BaseModel]
) -> Comparison:
    """Compare two documents, and what they name if they are transfer files.

    Raises:
        DiagnosticError: TS914, they are of different kinds; or what they name cannot be read.
    """
    if type(before.value) is not type(after.value):
        raise DiagnosticError([_unlike(before, after)])
    match before.value, after.value:
        case Transfer() as one, Transfer() as other:
            return Comparison(tuple(_of_transfers(first, one, before, second, other, after)))
        case TransferPlan() as one, TransferPlan() as other:
            return compare_plans(
                Document(one, before.source, before.digest),
                Document(other, after.source, after.digest),
            )
        case _:
            return Comparison((_section("", before, after),))


def compare_plans(old: Document[TransferPlan], new: Document[TransferPlan]) -> Comparison:
    """Compare two plans, and what they move."""
    section = _section("", old, new)
    traffic = (traffic_of(old.value), traffic_of(new.value)) if section.changes else None
    return Comparison((section,), traffic)


def _unlike(before: Document[BaseModel], after: Document[BaseModel]) -> Diagnostic:
    formats = format_of(before), format_of(after)
    return Diagnostic(
        "TS914",
        f"a {formats[1]} cannot be compared with a {formats[0]}",
        after.source.locate("/format"),
        labels=(Label(before.source.locate("/format"), "the older one"),),
    )


def _section(title: str, before: Document[Any] | None, after: Document[Any] | None) -> Section:
    document = after or before
    assert document, "one of the two is there"
    changes = _DIFFS[type(document.value)](before and before.value, after and after.value)
    return Section(title, changes, before and before.source, after and after.source)


def _of_transfers(
    first: Spot,
    one: Transfer,
    before: Document[BaseModel],
    second: Spot,
    other: Transfer,
    after: Document[BaseModel],
) -> Iterator[Section]:
    """Compare what two transfer files name, and then the files themselves."""
    for name, model in _NAMED.items():
        old = _named(first, getattr(one, name), model, before, name)
        new = _named(second, getattr(other, name), model, after, name)
        if old or new:
            yield _section(f"{name} manifest" if model is Manifest else name, old, new)
    yield _section("transfer file", before, after)


def _named(
    place: Spot,
    relative: str | None,
    model: type[BaseModel],
    transfer: Document[BaseModel],
    name: str,
) -> Document[BaseModel] | None:
    if relative is None:
        return None
    document = read_spot(place.beside(relative))
    if not isinstance(document.value, model):
        message = f"the {name} is named here, and it is a {format_of(document)}"
        raise DiagnosticError([Diagnostic("TS914", message, transfer.source.locate(f"/{name}"))])
    return document


def comparison_lines(found: Comparison, width: int) -> Iterator[Text]:
    """Write a comparison for people."""
    for section in found.sections:
        if section.changes:
            yield Text()
            if section.title:
                yield from flow((section.title, HEAD), [], width)
            yield from section_lines(section, width)
    if found.traffic:
        yield Text()
        for name, old, new in traffic_rows(*found.traffic):
            text = old if old == new else f"{old} -> {new}"
            yield from flow(f"{name:<22}", [text], width)


def comparison_members(found: Comparison) -> dict[str, Json]:
    """Write a comparison for programs."""
    return {
        "sections": [
            {"title": section.title, "changes": change_members(section)}
            for section in found.sections
        ],
        "traffic": traffic_members(*found.traffic) if found.traffic else None,
    }

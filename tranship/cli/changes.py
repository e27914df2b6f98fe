"""Changes in words: what became of what, and of how much of it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from rich.text import Text

from tranship.cli.layout import BAD, GOOD, HEAD, NAME, QUIET, Words, count, flow
from tranship.cli.notice import Notice
from tranship.compiler.diff import Change, Weight
from tranship.schema.canonical import Json
from tranship.schema.diagnostics import Location
from tranship.schema.positions import Source

_LABELS = {
    "axis": "axis",
    "axis.order": "order of axes",
    "buffer.alias": "alias of",
    "buffer.name": "renamed",
    "buffer.ranks": "on ranks",
    "buffer.scale": "scales in",
    "buffer.scale_of": "scales of",
    "buffer.scale_values": "scales",
    "edge.dtypes": "from",
    "edge.place": "runs",
    "edge.receiver.box": "receiver's box",
    "edge.receiver.buffer": "receiver's buffer",
    "edge.receiver.place": "receiver's place",
    "edge.receiver.scales": "receiver's scales",
    "edge.receiver.where": "receiver's ranks",
    "edge.route": "sent by",
    "edge.sender.box": "sender's box",
    "edge.sender.buffer": "sender's buffer",
    "edge.sender.place": "sender's place",
    "edge.sender.scales": "sender's scales",
    "edge.sender.where": "sender's ranks",
    "edge.window": "in parts of",
    "input": "digest",
    "option": "option",
    "path": "path",
    "framework.name": "framework",
    "framework.version": "framework's version",
    "placement": "seats",
    "placement.links": "speeds",
    "policy": "policy",
    "round": "round",
    "rounds": "rounds",
    "staging.budget": "staging budget",
    "staging.slots": "staging slots",
    "tensor.tied_to": "tied to",
    "unused": "unused",
}
_OF_A_PART = frozenset({"buffer.box", "buffer.place", "buffer.where"})
_PARTS = {"buffer.box": "", "buffer.place": " lies at", "buffer.where": " where"}


def label(change: Change) -> str:
    """Name the property that changed."""
    if change.kind in _OF_A_PART:
        return f"{change.detail}{_PARTS[change.kind]}".strip()
    return _LABELS.get(change.kind, change.kind.partition(".")[2] or change.kind)


def what(change: Change) -> str:
    """Write what a thing was and is: `[12288, 4096] -> [6144, 4096]`."""
    if change.old is None:
        return change.new or ""
    if change.new is None:
        return change.old
    return f"{change.old} -> {change.new}" if change.old or change.new else "is another"


def remark(change: Change) -> str:
    """Write what else there is to say about a change."""
    told = change.kind in _OF_A_PART or change.detail in ("", change.kind)
    return "" if told else f"({change.detail})"


_ONE_INDEX = re.compile(r"([a-z][a-z0-9_]*) ([0-9.,:]+)")


def extent(change: Change) -> str:
    """Say how many of a family changed: `in 36 layers (0..35)`, `in layer 17`."""
    if change.kind == "round":
        return count(change.count, "tensor")
    single = _ONE_INDEX.fullmatch(change.members)
    if single and change.count == 1:
        return f"in {change.members}"
    if single:
        return f"in {count(change.count, single[1])} ({single[2]})"
    noun = "buffer" if change.kind.startswith(("buffer", "derived", "fill")) else "tensor"
    return f"in {count(change.count, noun)} ({change.members})" if change.members else ""


def sign(change: Change) -> str:
    """Say by one character whether a thing came, went, or is another."""
    return "+" if change.old is None else "-" if change.new is None else "~"


def sentence(change: Change) -> str:
    """Write one change on a line, for where it stands alone."""
    name = "" if label(change) in change.subject.split() else f"{label(change)} "
    body = {
        "+": f"+ {change.subject}: {name}{what(change)}",
        "-": f"- {change.subject}: {name}{what(change)}",
        "~": f"{change.subject}: {name}{what(change)}",
    }[sign(change)]
    return " ".join(part for part in (body, extent(change), remark(change)) if part)


@dataclass(frozen=True)
class Section:
    """The changes of one document, and where its old and new text are."""

    title: str
    changes: tuple[Change, ...]
    old: Source | None
    new: Source | None

    def place(self, change: Change) -> Location | None:
        """Find the line that a change is about."""
        source = self.old if change.new is None and change.old is not None else self.new
        return source.locate(change.pointer) if source else None


_STYLES = {"+": GOOD, "-": BAD, "~": HEAD}
_COMES_AND_GOES = frozenset(
    {
        "buffer",
        "buffer.alias",
        "buffer.constant",
        "buffer.derived",
        "derived",
        "edge",
        "fill",
        "policy",
        "quantization.module",
        "tensor",
        "unused",
    }
)


def section_lines(section: Section, width: int) -> Iterator[Text]:
    """Write a section for people: what matters most first, and what is of one thing together."""
    followed = _followed(section.changes)
    shown = [change for change in section.changes if not _is_likewise(change, followed)]
    for weight, own in groupby(shown, key=lambda change: change.weight):
        changes = list(own)
        if weight is Weight.GRANT:
            yield from flow(("to approve", BAD), [], width)
        for subject, parts in groupby(changes, key=lambda one: (one.subject, one.members)):
            yield from _subject_lines(subject[0], list(parts), section.changes, width)
        if weight is Weight.GRANT and len(changes) < len(shown):
            yield from flow(("besides", HEAD), [], width)


def _followed(changes: Sequence[Change]) -> set[tuple[str, str]]:
    return {(change.subject, change.members) for change in changes}


def _is_likewise(change: Change, followed: set[tuple[str, str]]) -> bool:
    """Whether a change of scales goes without saying beside that of their weights."""
    return bool(change.follows) and (change.follows, change.members) in followed


def _subject_lines(
    subject: str, parts: Sequence[Change], changes: Sequence[Change], width: int
) -> Iterator[Text]:
    first = parts[0]
    if len(parts) == 1 and (sign(first) != "~" or not first.members):
        yield from _one_line(first, width)
        return
    head: list[Words] = [(subject, NAME), (extent(first), QUIET)]
    yield from flow(("~ ", HEAD), head, width)
    for part in parts:
        mark = "" if sign(part) == "~" else f"{sign(part)} "
        yield from flow(
            f"{mark}{label(part)}  ", [what(part), (remark(part), QUIET)], width, indent=4
        )
    if any(other.follows == subject for other in changes):
        yield from flow(("its scales likewise", QUIET), [], width, indent=4)


def _one_line(change: Change, width: int) -> Iterator[Text]:
    mark = sign(change)
    is_whole = mark != "~" and change.kind in _COMES_AND_GOES
    name = "" if is_whole else label(change)
    parts: list[Words] = [(change.subject, NAME), f"{name} {what(change)}".strip()]
    parts += [(extent(change), QUIET), (remark(change), QUIET)]
    yield from flow((f"{mark} ", _STYLES[mark]), parts, width)


def notices(section: Section) -> Iterator[Notice]:
    """Write the changes of a section one by one, but for what goes without saying."""
    followed = _followed(section.changes)
    for change in section.changes:
        if not _is_likewise(change, followed):
            at = None if change.new is None else section.place(change)
            is_urgent = change.weight is Weight.GRANT
            yield Notice(section.title or "changes", sentence(change), at, is_urgent)


def change_members(section: Section) -> list[Json]:
    """Write the changes of a section for programs."""
    return [
        {**asdict(change), "weight": change.weight.value, "text": sentence(change)}
        for change in section.changes
    ]

"""What may happen to a buffer fits what is declared of it, and names buffers on the same rank.

Only a `transfer` buffer has pieces and fills: a derived buffer is what its recipe makes, a constant
one is left alone, and an alias is described where the memory is.
"""

from collections.abc import Iterator, Sequence

from tranship.schema.canonical import Path
from tranship.schema.layouts import LAYOUTS
from tranship.schema.manifest import Alias, BufferFamily, ConstantBuffer, Derived, Transfer
from tranship.schema.nearest import nearest
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.links import find_links, missing
from tranship.schema.rules.nametables import name_of, split_name
from tranship.schema.rules.subject import Subject


def buffers_once(subject: Subject) -> Iterator[Finding]:
    """Find buffers of one name on one rank."""
    for texts in subject.buffer_members:
        table = subject.buffer_table(texts)
        for first, second in table.repeats():
            earlier, later = int(table.owner[first]), int(table.owner[second])
            name = name_of(texts, table.keys.parts[len(table.axes) :], second)
            where = ", ".join(
                f"{axis} {int(table.keys.parts[n][second])}" for n, axis in enumerate(table.axes)
            )
            yield Finding(
                "TS161",
                ("buffers", later, "name"),
                f"buffer {name!r}{' at ' + where if where else ''} is declared twice on one rank",
                first=("buffers", earlier, "name"),
            )


def roles(subject: Subject) -> Iterator[Finding]:
    """Check the role, the fills and the layout of every buffer."""
    for number, buffer in enumerate(subject.manifest.buffers):
        path = ("buffers", number)
        yield from _described(path, buffer)
        yield from _fills(path, buffer)
        yield from _layout(path, buffer)


def _described(path: Path, buffer: BufferFamily) -> Iterator[Finding]:
    kind = buffer.role.kind
    for field in ("pieces", "fills"):
        if kind != "transfer" and getattr(buffer, field):
            yield Finding(
                "TS171",
                (*path, field),
                f"buffer {buffer.name!r} is {kind}, and has {field}",
                expected="pieces and fills in transfer buffers alone",
                found=kind,
            )


def _fills(path: Path, buffer: BufferFamily) -> Iterator[Finding]:
    for number, fill in enumerate(buffer.fills):
        if (fill.value is None) == (fill.reason is None):
            yield Finding(
                "TS169",
                (*path, "fills", number),
                f"a fill of buffer {buffer.name!r} needs a value or a reason",
                expected="one of the two",
                found="neither" if fill.value is None else "both",
            )


def _layout(path: Path, buffer: BufferFamily) -> Iterator[Finding]:
    if buffer.layout not in LAYOUTS:
        close = nearest(buffer.layout, LAYOUTS)
        yield Finding(
            "TS187",
            (*path, "layout"),
            f"buffer {buffer.name!r} has layout {buffer.layout!r}, which is not known",
            expected="one of " + ", ".join(sorted(LAYOUTS)),
            found=buffer.layout,
            help=f"did you mean {' or '.join(close)}?" if close else None,
            suggestion=close[0] if close else None,
        )


def role_references(subject: Subject) -> Iterator[Finding]:
    """Check what derived buffers and aliases name, and that a recipe has something to do, once."""
    for number, buffer in enumerate(subject.manifest.buffers):
        path = ("buffers", number, "role")
        match buffer.role:
            case Derived(inputs=inputs):
                for place, text in enumerate(inputs):
                    links = find_links(subject, number, text)
                    yield from missing("TS183", (*path, "inputs", place), text, links, subject)
                    yield from _own_input((*path, "inputs", place), buffer, text)
                yield from _never_changes((*path, "inputs"), number, inputs, subject)
            case Alias(of=of):
                links = find_links(subject, number, of)
                yield from missing("TS184", (*path, "of"), of, links, subject)
                yield from _alias_targets((*path, "of"), number, links.owners, subject)
            case Transfer() | _:
                pass


def _own_input(path: Path, buffer: BufferFamily, text: str) -> Iterator[Finding]:
    """A recipe that transforms its buffer in place does it once more with every update."""
    if split_name(text) == split_name(buffer.name):
        yield Finding(
            "TS195",
            path,
            f"buffer {buffer.name!r} is derived from itself: each update would transform it again",
            expected="inputs that an update writes, in another buffer than the result",
            found=f"{text!r} among its own inputs",
            help="receive the untransformed values in a buffer of their own, and derive this one "
            "from it",
        )


def _never_changes(
    path: Path, number: int, inputs: Sequence[str], subject: Subject
) -> Iterator[Finding]:
    """A recipe of which no input ever changes has no business in an update."""
    buffers = subject.manifest.buffers
    owners = [owner for text in inputs for owner in find_links(subject, number, text).owners]
    if owners and all(isinstance(buffers[owner].role, ConstantBuffer) for owner in owners):
        yield Finding(
            "TS196",
            path,
            f"buffer {buffers[number].name!r} is derived from buffers that no update changes",
            expected="at least one input that an update writes",
            found="constant " + ", ".join(repr(buffers[owner].name) for owner in owners),
            help="declare it constant too, with the reason why an update leaves it alone, or "
            "have its inputs take part",
        )


def _alias_targets(
    path: Path, number: int, owners: list[int], subject: Subject
) -> Iterator[Finding]:
    name = subject.manifest.buffers[number].name
    for owner in owners:
        target = subject.manifest.buffers[owner]
        if isinstance(target.role, Alias):
            yield Finding(
                "TS185",
                path,
                f"buffer {name!r} is an alias of {target.name!r}, which is an alias itself",
                expected="a buffer that is no alias",
                suggestion=target.role.of if owner != number else None,
            )

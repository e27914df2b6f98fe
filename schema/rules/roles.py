"""What may happen to a buffer fits what is declared of it, and names buffers on the same rank.

Only a `transfer` buffer has pieces and fills: a derived buffer is what its recipe makes, a constant
one is left alone, and an alias is described where the memory is.
"""

from collections.abc import Iterator

from tranship.schema.canonical import Path
from tranship.schema.layouts import LAYOUTS
from tranship.schema.manifest import Alias, BufferFamily, Derived, Transfer
from tranship.schema.nearest import nearest
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.links import find_links, missing
from tranship.schema.rules.nametables import name_of
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
    """Check that inputs and alias targets exist, and that no alias names an alias."""
    for number, buffer in enumerate(subject.manifest.buffers):
        path = ("buffers", number, "role")
        match buffer.role:
            case Derived(inputs=inputs):
                for place, text in enumerate(inputs):
                    links = find_links(subject, number, text)
                    yield from missing("TS183", (*path, "inputs", place), text, links, subject)
            case Alias(of=of):
                links = find_links(subject, number, of)
                yield from missing("TS184", (*path, "of"), of, links, subject)
                yield from _alias_targets((*path, "of"), number, links.owners, subject)
            case Transfer() | _:
                pass


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

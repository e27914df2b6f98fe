"""Names mean one thing each, and the name of a tensor or buffer tells its members apart.

In the names of buffers and tensors every run of digits is a number. A hole stands for a whole
number, so it may touch neither a digit nor another hole: `weight1{i}` could be the same as
`weight{j}`. A tensor's name holds plain indices, each once.
"""

import keyword
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from tranship.schema.canonical import Path
from tranship.schema.expression import Variable, to_text
from tranship.schema.manifest import BufferFamily, Manifest
from tranship.schema.mesh import RANK
from tranship.schema.rules.expressions import references
from tranship.schema.rules.findings import Finding
from tranship.schema.template import Template, TemplateError, parse_template

RESERVED = frozenset({RANK, "min", "max", *keyword.kwlist})
"""Names that an expression could not read, or would read as something else."""


def names(manifest: Manifest) -> Iterator[Finding]:
    """Check the names of a manifest, and the templates that name tensors and buffers."""
    axes = [axis.name for axis in manifest.axes]
    yield from axis_names(("axes",), axes)
    yield from table_names(("tables",), manifest.tables)
    for number, tensor in enumerate(manifest.tensors):
        path = ("tensors", number)
        yield from index_names((*path, "indices"), tensor.indices, dict.fromkeys(axes, "an axis"))
        yield from plain_holes((*path, "name"), tensor.name, tensor.indices)
        if tensor.tied_to is not None:
            yield from lone_holes((*path, "tied_to"), tensor.tied_to)
    for number, buffer in enumerate(manifest.buffers):
        yield from _buffer_names(("buffers", number), buffer, axes)


def _buffer_names(path: Path, buffer: BufferFamily, axes: list[str]) -> Iterator[Finding]:
    taken = dict.fromkeys(axes, "an axis")
    yield from index_names((*path, "indices"), buffer.indices, taken)
    yield from lone_holes((*path, "name"), buffer.name)
    for inner, text in references(buffer):
        yield from lone_holes(path + inner, text)
    around = taken | dict.fromkeys(buffer.indices, "an index of the buffer")
    for number, piece in enumerate(buffer.pieces):
        inner = (*path, "pieces", number)
        yield from index_names((*inner, "indices"), piece.indices, around)
        yield from plain_holes((*inner, "tensor"), piece.tensor)
    for number, fill in enumerate(buffer.fills):
        yield from index_names((*path, "fills", number, "indices"), fill.indices, around)


def axis_names(path: Path, axes: list[str]) -> Iterator[Finding]:
    """Find axes that share a name, and axes with reserved names."""
    for number, name in enumerate(axes):
        place = (*path, number, "name")
        if name in axes[:number]:
            yield Finding("TS136", place, f"two axes are named {name!r}", found=name)
        yield from _reserved(place, name, "an axis")


def table_names(path: Path, tables: Mapping[str, object]) -> Iterator[Finding]:
    """Find tables with reserved names."""
    for name in tables:
        yield from _reserved((*path, name), name, "a table")


def index_names(
    path: Path, indices: Mapping[str, str], taken: Mapping[str, str]
) -> Iterator[Finding]:
    """Find indices whose name is reserved, or one of `taken` (names, and what has them)."""
    for name in indices:
        place = (*path, name)
        yield from _reserved(place, name, "an index")
        if name in taken:
            message = f"index {name!r} has the name of {taken[name]}"
            yield Finding("TS136", place, message, found=name)


def _reserved(path: Path, name: str, what: str) -> Iterator[Finding]:
    if name in RESERVED:
        yield Finding("TS137", path, f"{name!r} is reserved and cannot name {what}", found=name)


def plain_holes(
    path: Path, text: str, indices: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Find holes of a tensor's name that are no plain index, and indices held twice.

    Where `indices` is given, every one of them must be in the name.
    """
    template = _parsed(text)
    if template is None:
        return
    yield from lone_holes(path, text)
    for hole in template.holes:
        if not isinstance(hole, Variable):
            message = f"tensor name {text!r} holds the expression {to_text(hole)!r}"
            yield Finding(
                "TS138", path, message, expected="a plain index", found=str(to_text(hole))
            )
    for name, count in Counter(template.index_names).items():
        if count > 1:
            yield Finding("TS138", path, f"tensor name {text!r} holds index {name!r} twice")
    for name in indices or ():
        if name not in template.index_names:
            message = f"tensor name {text!r} does not hold index {name!r}"
            yield Finding("TS138", path, message, expected=f"{{{name}}} in the name")


def lone_holes(path: Path, text: str) -> Iterator[Finding]:
    """Find holes that touch a digit or another hole."""
    template = _parsed(text)
    if template is None:
        return
    inner = range(1, len(template.texts) - 1)
    touching = any(template.texts[number] == "" for number in inner) or any(
        re.search(r"[0-9]\Z", before) or re.search(r"\A[0-9]", after)
        for before, after in zip(template.texts, template.texts[1:], strict=False)
    )
    if touching:
        message = f"a hole of {text!r} touches a digit or another hole"
        yield Finding(
            "TS139", path, message, expected="something else than a digit on both sides of a hole"
        )


def _parsed(text: str) -> Template | None:
    """Parse a template; one that does not parse is reported with the expressions."""
    try:
        return parse_template(text)
    except TemplateError:
        return None

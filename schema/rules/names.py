"""Names mean one thing each, and the name of a tensor or buffer tells its members apart.

In the names of buffers and tensors every run of digits is a number. A hole stands for a whole
number, so it may touch neither a digit nor another hole: `weight1{i}` could be the same as
`weight{j}`. A tensor's name holds plain indices, each once.
"""

import keyword
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from tranship.schema.canonical import Path
from tranship.schema.expression import Variable, to_text
from tranship.schema.manifest import BufferFamily, Manifest
from tranship.schema.mesh import RANK
from tranship.schema.rules.expressions import references
from tranship.schema.rules.findings import Finding
from tranship.schema.template import Template, TemplateError, parse_template

RESERVED = frozenset({RANK, "min", "max", *keyword.kwlist})
"""Names that expressions could not read, or would read as something else."""


def names(manifest: Manifest) -> Iterator[Finding]:
    """Check the names of a manifest, and the templates that name tensors and buffers."""
    axes = [axis.name for axis in manifest.axes]
    yield from axis_names(("axes",), axes)
    yield from _reserved((("tables", name) for name in manifest.tables), "table")
    for number, tensor in enumerate(manifest.tensors):
        path = ("tensors", number)
        yield from index_names((*path, "indices"), tensor.indices, {}, axes)
        yield from _tensor_name((*path, "name"), tensor.name, tensor.indices)
        if tensor.tied_to is not None:
            yield from holes_stand_apart((*path, "tied_to"), tensor.tied_to)
    for number, buffer in enumerate(manifest.buffers):
        yield from _buffer_names(("buffers", number), buffer, axes)


def _buffer_names(path: Path, buffer: BufferFamily, axes: list[str]) -> Iterator[Finding]:
    yield from index_names((*path, "indices"), buffer.indices, {}, axes)
    yield from holes_stand_apart((*path, "name"), buffer.name)
    for inner, text in references(buffer):
        yield from holes_stand_apart(path + inner, text)
    for number, piece in enumerate(buffer.pieces):
        inner = (*path, "pieces", number)
        yield from index_names((*inner, "indices"), piece.indices, buffer.indices, axes)
        yield from plain_holes((*inner, "tensor"), piece.tensor)
    for number, fill in enumerate(buffer.fills):
        inner = (*path, "fills", number, "indices")
        yield from index_names(inner, fill.indices, buffer.indices, axes)


def axis_names(path: Path, axes: list[str]) -> Iterator[Finding]:
    """Find axes of one name, and axes with reserved names."""
    places = [(*path, number, "name") for number in range(len(axes))]
    for number, name in enumerate(axes):
        if name in axes[:number]:
            yield Finding("TS136", places[number], f"two axes are named {name!r}", found=name)
    yield from _reserved(zip(places, axes, strict=True), "axis")


def _reserved(named: Iterable[tuple[Path, str] | tuple[str, str]], what: str) -> Iterator[Finding]:
    for place, name in named:
        path = place if isinstance(place, tuple) else (place, name)
        if name in RESERVED:
            message = f"{name!r} is reserved and cannot name {_article(what)}"
            yield Finding("TS137", path, message, found=name)


def _article(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def index_names(
    path: Path, indices: Mapping[str, str], around: Mapping[str, str], axes: list[str]
) -> Iterator[Finding]:
    """Find indices that share their name with an axis, or with an index around them."""
    yield from _reserved(((*path, name), name) for name in indices) if False else ()
    for name in indices:
        place = (*path, name)
        if name in RESERVED:
            yield Finding(
                "TS137", place, f"{name!r} is reserved and cannot name an index", found=name
            )
        for others, what in ((axes, "an axis"), (around, "an index of the buffer")):
            if name in others:
                yield Finding("TS136", place, f"index {name!r} is also {what}", found=name)

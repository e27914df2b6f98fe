"""Every expression of a manifest parses, reads names that it may read, and always has a value.

| where | may read |
| --- | --- |
| `at` values | the indices of the family and of its piece or fill |
| buffer names and references to them, tensor names, `tied_to` | the same |
| all other expressions | these, the axes and `rank` |

Tables may be read everywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tranship.schema.canonical import Path
from tranship.schema.expression import IntArray, Interval
from tranship.schema.manifest import (
    Alias,
    BufferFamily,
    Derived,
    Fill,
    IntExpression,
    Manifest,
    Piece,
    Scale,
    Scaled,
)
from tranship.schema.mesh import axis_ranges, table_arrays
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.scopes import Scope, Site, check_indices, check_site, index_ranges


@dataclass(frozen=True, eq=False)
class Names:
    """The names that a whole document gives: axes with their ranges, and tables.

    Scopes are made once for every set of indices, so that equal texts are checked once.
    """

    axes: Mapping[str, Interval]
    tables: Mapping[str, IntArray]
    made: dict[tuple[tuple[str, str], ...], tuple[Scope, Scope]]

    def scopes(self, indices: Mapping[str, str]) -> tuple[Scope, Scope]:
        """Make the scope of values, and that of names and of `at`, which may not read axes."""
        key = tuple(indices.items())
        if key not in self.made:
            ranges = index_ranges(indices)
            values = Scope({**self.axes, **ranges}, self.tables)
            self.made[key] = values, values.narrow(ranges)
        return self.made[key]


def names_of(manifest: Manifest) -> Names:
    """Collect the names that a manifest gives."""
    axes = axis_ranges(manifest.axes, manifest.world_size)
    return Names(axes, table_arrays(manifest.tables), {})


def expressions(manifest: Manifest) -> Iterator[Finding]:
    """Check all index sets and expressions of a manifest."""
    yield from _index_sets(manifest)
    names = names_of(manifest)
    for number, tensor in enumerate(manifest.tensors):
        _, plain = names.scopes(tensor.indices)
        path = ("tensors", number)
        yield from check_site(Site((*path, "name"), tensor.name, plain, is_template=True))
        if tensor.tied_to is not None:
            yield from check_site(Site((*path, "tied_to"), tensor.tied_to, plain, is_template=True))
    for number, buffer in enumerate(manifest.buffers):
        for site in _buffer_sites(buffer, ("buffers", number), names):
            yield from check_site(site)


def _index_sets(manifest: Manifest) -> Iterator[Finding]:
    if manifest.ranks is not None:
        yield from check_indices((), {"ranks": manifest.ranks}, {})
    for number, tensor in enumerate(manifest.tensors):
        yield from check_indices(("tensors", number, "indices"), tensor.indices, {})
    for number, buffer in enumerate(manifest.buffers):
        path = ("buffers", number)
        yield from check_indices((*path, "indices"), buffer.indices, {})
        for place, piece in enumerate(buffer.pieces):
            inner = (*path, "pieces", place, "indices")
            yield from check_indices(inner, piece.indices, buffer.indices)
        for place, fill in enumerate(buffer.fills):
            inner = (*path, "fills", place, "indices")
            yield from check_indices(inner, fill.indices, buffer.indices)


def _buffer_sites(buffer: BufferFamily, path: Path, names: Names) -> Iterator[Site]:
    values, plain = names.scopes(buffer.indices)
    yield Site((*path, "name"), buffer.name, plain, is_template=True)
    for inner, text in references(buffer):
        yield Site(path + inner, text, plain, is_template=True)
    yield from at_sites((*path, "at"), buffer.at, plain)
    yield from list_sites((*path, "shape"), buffer.shape, values)
    yield from list_sites((*path, "strides"), buffer.strides, values)
    for number, piece in enumerate(buffer.pieces):
        yield from _piece_sites(piece, buffer, (*path, "pieces", number), names)
    for number, fill in enumerate(buffer.fills):
        yield from _fill_sites(fill, buffer, (*path, "fills", number), names)


def references(buffer: BufferFamily) -> Iterator[tuple[Path, str]]:
    """List the templates in which a buffer names others, with their paths inside it."""
    match buffer.role:
        case Derived(inputs=inputs):
            yield from ((("role", "inputs", n), text) for n, text in enumerate(inputs))
        case Alias(of=of):
            yield ("role", "of"), of
        case _:
            pass
    match buffer.encoding:
        case Scaled(scale=scale):
            yield ("encoding", "scale"), scale
        case Scale(of=of):
            yield ("encoding", "of"), of
        case _:
            pass


def _piece_sites(piece: Piece, buffer: BufferFamily, path: Path, names: Names) -> Iterator[Site]:
    values, plain = names.scopes({**buffer.indices, **piece.indices})
    yield Site((*path, "tensor"), piece.tensor, plain, is_template=True)
    yield from at_sites((*path, "at"), piece.at, plain)
    yield Site((*path, "offset"), piece.offset, values)
    for name in ("start", "extent", "strides", "origin"):
        yield from list_sites((*path, name), getattr(piece, name), values)


def _fill_sites(fill: Fill, buffer: BufferFamily, path: Path, names: Names) -> Iterator[Site]:
    values, plain = names.scopes({**buffer.indices, **fill.indices})
    yield from at_sites((*path, "at"), fill.at, plain)
    yield Site((*path, "offset"), fill.offset, values)
    yield from list_sites((*path, "sizes"), fill.sizes, values)
    yield from list_sites((*path, "strides"), fill.strides, values)


def at_sites(path: Path, at: Mapping[str, IntExpression], scope: Scope) -> Iterator[Site]:
    """List the values of an `at`."""
    return (Site((*path, axis), value, scope) for axis, value in at.items())


def list_sites(path: Path, entries: Sequence[IntExpression] | None, scope: Scope) -> Iterator[Site]:
    """List the expressions of a field that has one per dim, and may be absent."""
    return (Site((*path, number), entry, scope) for number, entry in enumerate(entries or ()))

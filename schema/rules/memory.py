"""The memory of one buffer family, and what its pieces and fills take of it, as arrays.

Buffers of one family whose shape, strides, pieces and fills do not differ are one row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tranship.schema.canonical import Path
from tranship.schema.expression import IntArray
from tranship.schema.manifest import BufferFamily, Fill, IntExpression, Piece
from tranship.schema.rules.tiling import Region
from tranship.schema.rules.world import (
    At,
    Keys,
    Places,
    World,
    columns,
    find_places,
    names_in,
    names_in_at,
)

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

LARGEST = 2.0**61
"""Addresses stay below this; larger ones are found in floating point, before integers overflow."""


@dataclass(frozen=True)
class Regions:
    """Strided regions: `offset` `[n]`, `sizes` and `strides` `[n, d]`, in elements."""

    offset: IntArray
    sizes: IntArray
    strides: IntArray

    @property
    def occupied(self) -> BoolArray:
        """Which regions hold an element, `[n]`."""
        return np.all(self.sizes > 0, axis=1)

    @property
    def fits(self) -> BoolArray:
        """Which regions end below `LARGEST` and are not larger, `[n]`; the others overflow."""
        steps = np.maximum(self.sizes - 1, 0).astype(np.float64) * self.strides
        with np.errstate(over="ignore"):
            size = np.prod(np.maximum(self.sizes, 1).astype(np.float64), axis=1)
        return (self.offset + steps.sum(axis=1) < LARGEST) & (size < LARGEST)

    @property
    def last(self) -> IntArray:
        """Highest address of each region, `[n]`; one below the offset where it is empty."""
        last = self.offset + np.sum((self.sizes - 1) * self.strides, axis=1)
        return np.where(self.occupied, last, self.offset - 1)

    @property
    def volume(self) -> IntArray:
        """Number of elements of each region, `[n]`."""
        return np.prod(self.sizes, axis=1, dtype=np.int64)

    @property
    def nests(self) -> BoolArray:
        """Whether each stride is larger than the span of all smaller ones, `[n]`.

        Then no two elements of a region share an address.
        """
        moving = self.sizes > 1
        strides = np.where(moving, self.strides, 0)
        order = np.argsort(strides, axis=1, kind="stable")
        strides = np.take_along_axis(strides, order, axis=1)
        spans = strides * np.take_along_axis(self.sizes - 1, order, axis=1)
        below = np.cumsum(spans, axis=1) - spans
        return np.all((strides > below) | ~np.take_along_axis(moving, order, axis=1), axis=1)

    def take(self, index: IntArray | BoolArray) -> "Regions":
        """The regions at positions `index`."""
        return Regions(self.offset[index], self.sizes[index], self.strides[index])

    def region(self, row: int) -> Region:
        """One of the regions."""
        sizes, strides = self.sizes[row].tolist(), self.strides[row].tolist()
        return Region(int(self.offset[row]), tuple(sizes), tuple(strides))


@dataclass(frozen=True)
class Part:
    """A piece or a fill wherever it is: region `i` lies in buffer row `owner[i]`."""

    path: Path
    places: Places
    owner: IntArray
    regions: Regions


@dataclass(frozen=True)
class Memory:
    """The distinct buffers of one family, and the pieces and fills in them."""

    places: Places
    buffers: Regions
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class _Declared:
    """The fields of a piece or a fill that say where it lies."""

    path: Path
    indices: Mapping[str, str]
    at: At
    offset: IntExpression
    sizes: tuple[IntExpression, ...]
    strides: tuple[IntExpression, ...] | None

    @property
    def read(self) -> frozenset[str]:
        """Names that the fields read."""
        fields = (self.offset, *self.sizes, *(self.strides or ()))
        return names_in(fields) | names_in_at(self.at)


def memory_of(path: Path, buffer: BufferFamily, world: World) -> Memory:
    """Evaluate a buffer family whose lists have the lengths that they should.

    Raises:
        TooManyRows: the memory depends on too much.
    """
    parts = [_piece((*path, "pieces", n), piece) for n, piece in enumerate(buffer.pieces)]
    parts += [_fill((*path, "fills", n), fill) for n, fill in enumerate(buffer.fills)]
    read = names_in((*buffer.shape, *(buffer.strides or ())))
    read = read.union(*(part.read - part.indices.keys() for part in parts))
    places = find_places(world, buffer.indices, [buffer.at], read)
    shape = columns(buffer.shape, places, world)
    strides = columns(buffer.strides, places, world) if buffer.strides else _contiguous(shape)
    buffers = Regions(np.zeros(places.rows, dtype=np.int64), shape, strides)
    evaluated = [_evaluate(part, buffer, places, strides, world) for part in parts]
    return Memory(places, buffers, tuple(evaluated))


def memory_key(buffer: BufferFamily) -> object:
    """Sum up all on which `memory_of` and the role depend: equal keys mean equal memory."""
    parts = [_piece((), piece) for piece in buffer.pieces]
    parts += [_fill((), fill) for fill in buffer.fills]
    return (
        (buffer.role.kind, buffer.shape, buffer.strides, *_items(buffer.indices, buffer.at)),
        *((p.offset, p.sizes, p.strides, *_items(p.indices, p.at)) for p in parts),
    )


def _items(indices: Mapping[str, str], at: At) -> tuple[object, object]:
    return tuple(indices.items()), tuple(at.items())


def _piece(path: Path, piece: Piece) -> _Declared:
    return _Declared(path, piece.indices, piece.at, piece.offset, piece.extent, piece.strides)


def _fill(path: Path, fill: Fill) -> _Declared:
    return _Declared(path, fill.indices, fill.at, fill.offset, fill.sizes, fill.strides)


def _contiguous(shape: IntArray) -> IntArray:
    """Row-major strides of every shape, `[n, d]`; wrong where `Regions.fits` is false."""
    sizes = np.maximum(shape, 1)[:, ::-1]
    return (np.cumprod(sizes, axis=1) // np.maximum(sizes, 1))[:, ::-1]


def _evaluate(
    part: _Declared, buffer: BufferFamily, whole: Places, buffer_strides: IntArray, world: World
) -> Part:
    indices = {**buffer.indices, **part.indices}
    read = part.read | part.indices.keys() | whole.environment.keys()
    places = find_places(world, indices, [buffer.at, part.at], read)
    keys = Keys(tuple(whole.environment.values()), whole.rows)
    owner = keys.find([places.environment[name] for name in whole.environment], places.rows)
    sizes = columns(part.sizes, places, world)
    own = part.strides
    last = buffer_strides[owner, buffer_strides.shape[1] - len(part.sizes) :]
    strides = last if own is None else columns(own, places, world)
    offset = columns((part.offset,), places, world)[:, 0]
    return Part(part.path, places, owner, Regions(offset, sizes, strides))

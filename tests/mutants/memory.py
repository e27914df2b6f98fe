"""Memory whose elements say where they come from.

An element is a number that stands for a value, as `Values` hands them out: two elements are equal
if and only if they were made in the same way from the same elements of the same logical tensors.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tranship.schema.dtypes import DType
from tranship.schema.manifest import Part
from tranship.schema.records import BufferRecord, Declaration, Ints, PieceRecord

Value = tuple[Any, ...]
"""How a value was made: by what, and from which other values, by their numbers."""

Cells = NDArray[np.int64]
Site = tuple[int, str]
"""A rank and the name of a buffer there."""


@dataclass
class Values:
    """Numbers for values."""

    numbers: dict[Value, int] = field(default_factory=dict[Value, int])

    def number(self, *value: Hashable) -> int:
        """The number of one value."""
        return self.numbers.setdefault(value, len(self.numbers))

    def apply(self, kind: Hashable, *operands: Cells) -> Cells:
        """The numbers of `(kind, operand, ...)`, element by element."""
        columns = zip(*(operand.tolist() for operand in operands), strict=True)
        return np.array([self.number(kind, *column) for column in columns], dtype=np.int64)


@dataclass
class Buffer:
    """One buffer: the values of its addresses, and how often each was written."""

    dtype: DType
    cells: Cells
    writes: Cells


Memory = dict[Site, Buffer]


def indices(start: Ints, extent: Ints, step: Ints) -> Cells:
    """All elements of a box, row-major: `[n, d]`."""
    axes = [a + np.arange(n) * s for a, n, s in zip(start, extent, step, strict=True)]
    grids = np.meshgrid(*axes, indexing="ij") if axes else [np.zeros(1, dtype=np.int64)]
    table = np.stack([grid.reshape(-1) for grid in grids], axis=1)
    return table if axes else table[:, :0]


def addresses(offset: int, extent: Ints, strides: Ints) -> Cells:
    """The addresses of a strided region, row-major."""
    zeros, ones = (0,) * len(extent), (1,) * len(extent)
    steps = indices(zeros, extent, ones) * np.array(strides, dtype=np.int64)
    return offset + steps.sum(axis=1, dtype=np.int64)


def blank(declaration: Declaration, values: Values) -> Memory:
    """Memory in which no update has written anything yet."""
    memory: Memory = {}
    for buffer in declaration.buffers:
        pairs = zip(buffer.shape, buffer.strides, strict=True)
        size = 1 + sum((n - 1) * stride for n, stride in pairs) if all(buffer.shape) else 0
        stale = [values.number("stale", buffer.rank, buffer.name, k) for k in range(size)]
        cells = np.array(stale, dtype=np.int64)
        memory[buffer.rank, buffer.name] = Buffer(buffer.dtype, cells, np.zeros_like(cells))
    return memory


def held(declaration: Declaration, values: Values) -> Memory:
    """A sender's memory: every piece holds its elements of its tensor."""
    memory = blank(declaration, values)
    roots = {tensor.name: tensor.tied_to or tensor.name for tensor in declaration.tensors}
    for buffer in declaration.buffers:
        for piece in buffer.pieces:
            numbers = _contents(buffer, piece, roots[piece.tensor], values)
            place = addresses(piece.offset, piece.extent, piece.strides)
            memory[buffer.rank, buffer.name].cells[place] = numbers
    return memory


def _contents(buffer: BufferRecord, piece: PieceRecord, tensor: str, values: Values) -> list[int]:
    """What a piece holds. Blocks are told apart by their number and their grid's origin."""
    grid: Iterable[Hashable] = ()
    if piece.part is Part.SCALE:
        kind, grid = "scale", piece.origin
    else:
        kind = "value" if buffer.encoding.kind == "plain" else "code"
    elements = indices(piece.start, piece.extent, piece.step).tolist()
    return [values.number(kind, buffer.dtype, tensor, *grid, *element) for element in elements]

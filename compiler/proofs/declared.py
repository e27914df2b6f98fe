"""One side's declaration as arrays: the axioms that a plan is compared with.

Pieces are padded to one number of dims: a dim beyond their tensor's own has extent 1. So that equal
pieces have equal rows, a dim of extent 1 has step 1 and stride 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tranship.compiler.proofs.tiling import Regions, regions
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Part
from tranship.schema.records import BufferRecord, Declaration, Ints, TensorRecord


@dataclass(frozen=True, slots=True)
class Pieces:
    """`n` pieces: `buffer` and `tensor` number those of the declaration; tables are `[n, dims]`."""

    buffer: IntArray
    tensor: IntArray
    offset: IntArray
    start: IntArray
    extent: IntArray
    step: IntArray
    strides: IntArray
    origin: IntArray

    @property
    def rows(self) -> IntArray:
        """All fields side by side: two pieces are the same where their rows are equal."""
        single = self.extent == 1
        return np.concatenate(
            [
                np.stack([self.buffer, self.tensor, self.offset], axis=1),
                self.start,
                self.extent,
                np.where(single, 1, self.step),
                np.where(single, 0, self.strides),
                self.origin,
            ],
            axis=1,
        )

    @property
    def memory(self) -> Regions:
        """The memory that each piece takes in its buffer."""
        return regions(self.buffer, self.offset, self.extent, self.strides)


@dataclass(frozen=True, slots=True)
class Fills:
    """`n` regions without a tensor: `value` is 0 or 1, or -1 for one that a reason excuses."""

    memory: Regions
    value: IntArray


@dataclass(frozen=True)
class Declared:
    """One side's tensors and buffers, by number in the declaration's order, and its pieces."""

    side: str
    tensors: tuple[TensorRecord, ...]
    tensor_number: dict[str, int]
    buffers: tuple[BufferRecord, ...]
    buffer_number: dict[tuple[int, str], int]
    values: Pieces
    scales: Pieces
    fills: Fills

    @property
    def transferred(self) -> IntArray:
        """Numbers of the buffers that take part."""
        kinds = enumerate(buffer.role.kind for buffer in self.buffers)
        return column(number for number, kind in kinds if kind == "transfer")

    def memory(self, numbers: IntArray) -> Regions:
        """The memory of whole buffers, to be filled."""
        chosen = [self.buffers[int(number)] for number in numbers]
        dims = max((len(buffer.shape) for buffer in chosen), default=0)
        return regions(
            numbers,
            np.zeros(len(chosen), dtype=np.int64),
            table([buffer.shape for buffer in chosen], dims, 1),
            table([buffer.strides for buffer in chosen], dims, 0),
            weight=-1,
        )

    def class_of(self, name: str) -> str:
        """The tensor at the end of the ties of `name`; `name` itself if it is not declared."""
        seen: set[str] = set()
        while name in self.tensor_number and name not in seen:
            seen.add(name)
            tied = self.tensors[self.tensor_number[name]].tied_to
            if not tied:
                break
            name = tied
        return name


def declared(declaration: Declaration, dims: int) -> Declared:
    """Number the tensors and buffers of a declaration and lay its pieces out with `dims` dims."""
    tensor_number = {tensor.name: n for n, tensor in enumerate(declaration.tensors)}
    return Declared(
        side=declaration.side.value,
        tensors=declaration.tensors,
        tensor_number=tensor_number,
        buffers=declaration.buffers,
        buffer_number={(b.rank, b.name): n for n, b in enumerate(declaration.buffers)},
        values=_pieces(declaration.buffers, tensor_number, Part.VALUE, dims),
        scales=_pieces(declaration.buffers, tensor_number, Part.SCALE, dims),
        fills=_fills(declaration.buffers),
    )


def _pieces(
    buffers: tuple[BufferRecord, ...], tensor_number: dict[str, int], part: Part, dims: int
) -> Pieces:
    found = [
        (number, piece)
        for number, buffer in enumerate(buffers)
        if buffer.role.kind == "transfer"
        for piece in buffer.pieces
        if piece.part is part
    ]
    return Pieces(
        buffer=column(number for number, _ in found),
        tensor=column(tensor_number.get(piece.tensor, -1) for _, piece in found),
        offset=column(piece.offset for _, piece in found),
        start=table([piece.start for _, piece in found], dims, 0),
        extent=table([piece.extent for _, piece in found], dims, 1),
        step=table([piece.step for _, piece in found], dims, 1),
        strides=table([piece.strides for _, piece in found], dims, 0),
        origin=table([piece.origin for _, piece in found], dims, 0),
    )


def _fills(buffers: tuple[BufferRecord, ...]) -> Fills:
    found = [
        (number, fill)
        for number, buffer in enumerate(buffers)
        if buffer.role.kind == "transfer"
        for fill in buffer.fills
    ]
    dims = max((len(fill.sizes) for _, fill in found), default=0)
    memory = regions(
        column(number for number, _ in found),
        column(fill.offset for _, fill in found),
        table([fill.sizes for _, fill in found], dims, 1),
        table([fill.strides for _, fill in found], dims, 0),
    )
    return Fills(memory, column(fill.value for _, fill in found))


def column(values: Iterable[int]) -> IntArray:
    """Integers as int64 `[n]`."""
    return np.fromiter(values, dtype=np.int64)


def distinct(values: IntArray) -> list[int]:
    """The different values, ascending."""
    found: IntArray = np.unique(values)
    return [int(value) for value in found]


def table(rows: list[Ints], columns: int, padding: int) -> IntArray:
    """Rows of at most `columns` integers as int64 `[n, columns]`, padded on the right."""
    if not rows:
        return np.zeros((0, columns), dtype=np.int64)
    return np.array([(*row, *(padding,) * (columns - len(row))) for row in rows], dtype=np.int64)

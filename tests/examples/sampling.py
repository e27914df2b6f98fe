"""What a plan of any size writes to a sample of the engine's cells, and from where.

Where a plan is too large to be run, some cells of some receiver ranks stand for all: corners of
the declared boxes. A cell is told by everything that writes it: what is done to which element, by
what the sender's manifest says that it reads. Whoever sends, and when, makes no difference; what
must not happen between rounds and in staging memory is asked of `tests/mutants/staging.py`.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tests.mutants.declare import Case
from tests.mutants.ends import End, ends_of, names_of
from tests.mutants.memory import Site
from tests.mutants.staging import staging_faults
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.manifest import Part
from tranship.schema.moves import Moves, edge_moves
from tranship.schema.plan import Edge, Op, Place, TransferPlan
from tranship.schema.records import BufferRecord, Ints, PieceRecord
from tranship.schema.wire import payload


@dataclass(frozen=True)
class Cell:
    """One cell of a receiver's buffer, and the element, or number of a block, that it must hold."""

    site: Site
    address: int
    part: Part
    tensor: str
    element: Ints


@dataclass(frozen=True)
class Effect:
    """What is written to a cell: by which operation, and an element or the scale of a block."""

    op: Op
    formula: str | None
    dtype: DType
    tensor: str
    element: Ints
    block: Ints


@dataclass(frozen=True)
class Written:
    """A region that a move writes: its corner in elements or blocks, and where that lies.

    `tensor` is what the plan says that it is of. Scales that a receiver computes are made once for
    all that arrives of their blocks (`joint`), and not once for every move.
    """

    edge: Edge
    part: Part
    tensor: str
    joint: bool
    sender: End
    receiver: End
    corner: Ints
    extent: Ints
    address: int
    strides: Ints

    def element_at(self, address: int) -> Ints | None:
        """The element that is written to an address, if any is."""
        left, found = address - self.address, [0] * len(self.extent)
        if any(size == 0 for size in self.extent):
            return None
        for dim in sorted(range(len(self.extent)), key=lambda d: -self.strides[d]):
            stride, size = self.strides[dim], self.extent[dim]
            found[dim] = min(max(left // stride, 0), size - 1) if stride > 0 else 0
            left -= found[dim] * stride
        at = zip(self.corner, found, strict=True)
        return tuple(first + k for first, k in at) if left == 0 else None


class Sample:
    """Cells of some receiver ranks of a case, and what the senders declare."""

    def __init__(self, case: Case, ranks: Sequence[int], seed: int = 0) -> None:
        self._case, self._ranks = case, np.array(ranks, dtype=np.int64)
        self._held: dict[tuple[str, int], dict[str, BufferRecord]] = {}
        tensors = expand(case.receiver, []).tensors
        self._roots = {tensor.name: tensor.tied_to or tensor.name for tensor in tensors}
        self._chooser = random.Random(seed)

    @cached_property
    def cells(self) -> list[Cell]:
        """Corners of one piece of every kind: of those whose names differ in numbers alone."""
        kinds: dict[tuple[object, ...], list[tuple[BufferRecord, PieceRecord]]] = defaultdict(list)
        for buffer in expand(self._case.receiver, self._ranks.tolist()).buffers:
            for piece in buffer.pieces:
                names = (re.sub(r"\d+", "#", name) for name in (buffer.name, piece.tensor))
                kinds[buffer.rank, *names].append((buffer, piece))
        chosen = [self._chooser.choice(pairs) for pairs in kinds.values()]
        return [cell for buffer, piece in chosen for cell in self._corners(buffer, piece)]

    def _corners(self, buffer: BufferRecord, piece: PieceRecord) -> Iterator[Cell]:
        if all(piece.extent):
            for at in ((0,) * len(piece.extent), tuple(size - 1 for size in piece.extent)):
                element = tuple(
                    a + k * s for a, k, s in zip(piece.start, at, piece.step, strict=True)
                )
                address = piece.offset + sum(k * s for k, s in zip(at, piece.strides, strict=True))
                root = self._roots[piece.tensor]
                yield Cell((buffer.rank, buffer.name), address, piece.part, root, element)

    def effects(self, plan: TransferPlan) -> list[Counter[Effect]]:
        """Everything that writes each cell, and how often."""
        writes: dict[Site, list[Written]] = defaultdict(list)
        for number, edge in enumerate(plan.edges):
            for site, written in _writes(plan, edge, edge_moves(plan, number, self._ranks)):
                writes[site].append(written)
        return [self._effects(writes[cell.site], cell) for cell in self.cells]

    def _effects(self, writes: Sequence[Written], cell: Cell) -> Counter[Effect]:
        found: Counter[Effect] = Counter()
        for write in writes:
            element = write.element_at(cell.address)
            if element is not None:
                effect = self._effect(write, element)
                found[effect] = 1 if write.joint else found[effect] + 1
        return found

    def _effect(self, write: Written, element: Ints) -> Effect:
        edge, block = write.edge, Ints()
        tensor, read = self._roots.get(write.tensor, write.tensor), element
        if write.part is Part.VALUE:
            tensor, read = self._read(write, element)
            if edge.receiver.block:
                block = tuple(write.receiver.blocks(np.array([element]))[0].tolist())
        return Effect(edge.op, edge.formula, edge.receiver.dtype, tensor, read, block)

    def _read(self, write: Written, element: Ints) -> tuple[str, Ints]:
        """What lies where a sender reads an element, by the sender's manifest."""
        address = int(write.sender.address(np.array([element]))[0])
        rank, name = write.sender.place
        record = self._sender(write.edge.sender.buffer, rank).get(name)
        for piece in record.pieces if record else ():
            held = _element_of(piece, address)
            if held is not None:
                return self._roots[piece.tensor], held
        return "nothing", ()

    def _sender(self, family: str, rank: int) -> dict[str, BufferRecord]:
        """What the senders' manifest says of one family of buffers on one rank."""
        if (family, rank) not in self._held:
            sender = self._case.sender
            buffers = tuple(buffer for buffer in sender.buffers if buffer.name == family)
            tensors = {piece.tensor for buffer in buffers for piece in buffer.pieces}
            small = sender.model_copy(
                update={
                    "buffers": buffers,
                    "tensors": tuple(t for t in sender.tensors if t.name in tensors),
                }
            )
            records = expand(small, [rank]).buffers
            self._held[family, rank] = {record.name: record for record in records}
        return self._held[family, rank]

    def faults(self, plan: TransferPlan) -> set[str]:
        """What goes wrong on the way to these ranks, by their own share of staging memory."""
        moves = [edge_moves(plan, number, self._ranks) for number in range(len(plan.edges))]
        return staging_faults(plan, moves)


def _element_of(piece: PieceRecord, address: int) -> Ints | None:
    left, found = address - piece.offset, [0] * len(piece.extent)
    for dim in sorted(range(len(piece.extent)), key=lambda d: -piece.strides[d]):
        if not piece.extent[dim]:
            return None
        found[dim] = min(max(left // piece.strides[dim], 0), piece.extent[dim] - 1)
        left -= found[dim] * piece.strides[dim]
    at = zip(piece.start, found, piece.step, strict=True)
    return tuple(a + k * s for a, k, s in at) if left == 0 else None


def _writes(plan: TransferPlan, edge: Edge, moves: Moves) -> Iterator[tuple[Site, Written]]:
    if edge.op is Op.AMAX:
        return
    sent = payload(edge, moves)
    joint = edge.place is Place.RECEIVER
    tensors = names_of(edge.source or edge.tensor, plan.sender, moves.sender)
    for row, (sender, receiver, (start, extent, step)) in enumerate(ends_of(plan, edge, moves)):
        assert set(step) <= {1}, "no example has strided boxes"
        own = edge, tensors[row], sender, receiver
        address = int(receiver.address(np.array([start]))[0])
        yield receiver.place, _written(*own, Part.VALUE, start, extent, address, receiver.strides)
        scale = receiver.scale
        if scale is not None:
            corner = tuple(sent.blocks[row].tolist())
            counts = tuple(sent.block_counts[row].tolist())
            if joint:
                last = np.array([[a + n - 1 for a, n in zip(start, extent, strict=True)]])
                blocks = receiver.blocks(np.concatenate([np.array([start]), last]))
                corner = tuple(blocks[0].tolist())
                counts = tuple((blocks[1] - blocks[0] + 1).tolist())
            address = int(scale.address(np.array([corner]))[0])
            yield scale.place, _written(*own, Part.SCALE, corner, counts, address, scale.strides)


def _written(
    edge: Edge,
    tensor: str,
    sender: End,
    receiver: End,
    part: Part,
    corner: Ints,
    extent: Ints,
    address: int,
    strides: Ints,
) -> Written:
    joint = part is Part.SCALE and edge.place is Place.RECEIVER
    return Written(edge, part, tensor, joint, sender, receiver, corner, extent, address, strides)

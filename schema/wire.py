"""What travels for each move, and where it lies in its message.

A message is all that one sender rank sends to one receiver rank in one round. It holds, edge by
edge and move by move, the move's values (row-major in the region) and then its scales (row-major
in blocks), each starting at a multiple of `ALIGNMENT` bytes. A rank's staging slot holds its
messages one after another, in ascending order of the peer's rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema.boxes import cells_of
from tranship.schema.dtypes import ITEM_SIZE, DType
from tranship.schema.expression import IntArray
from tranship.schema.moves import Moves, edge_block
from tranship.schema.plan import Edge, Op, Place

ALIGNMENT = 128
"""Every region of a message starts at a multiple of this many bytes."""


@dataclass(frozen=True, slots=True)
class WireFormat:
    """The dtypes in which an edge's values and scales travel; None for what does not travel."""

    values: DType | None
    scales: DType | None


@dataclass(frozen=True, slots=True)
class Payload:
    """What each of `n` moves puts on the wire.

    `blocks` and `block_counts` `[n, d]` are the first block and number of blocks whose scales
    (or amaxes) travel; `value_bytes` and `scale_bytes` `[n]` are sizes without padding.
    """

    format: WireFormat
    blocks: IntArray
    block_counts: IntArray
    value_bytes: IntArray
    scale_bytes: IntArray

    @property
    def padded(self) -> IntArray:
        """Bytes of each move in its message, `[n]`."""
        return align(self.value_bytes) + align(self.scale_bytes)


def align(sizes: IntArray) -> IntArray:
    """Round byte counts up to `ALIGNMENT`."""
    return -(-sizes // ALIGNMENT) * ALIGNMENT


def wire_format(edge: Edge) -> WireFormat:
    """Which dtypes travel: what the sender holds, unless its transform runs at the sender."""
    sender, receiver = edge.sender, edge.receiver
    at_sender = edge.place is Place.SENDER
    scale = receiver.scale.dtype if receiver.scale else None
    match edge.op:
        case Op.AMAX:
            return WireFormat(None, DType.F32)
        case Op.COPY:
            return WireFormat(sender.dtype, scale)
        case Op.CAST | Op.DEQUANTIZE:
            return WireFormat(receiver.dtype if at_sender else sender.dtype, None)
        case Op.QUANTIZE | Op.REQUANTIZE if at_sender:
            return WireFormat(receiver.dtype, scale)
        case Op.QUANTIZE:
            return WireFormat(sender.dtype, None)
        case Op.REQUANTIZE:
            return WireFormat(DType.F32, None)


def payload(edge: Edge, moves: Moves) -> Payload:
    """Sizes of what each move puts on the wire."""
    form = wire_format(edge)
    first, counts = _travelling_blocks(edge, moves) if form.scales else _no_blocks(moves)
    count = (
        np.prod(counts, axis=1, dtype=np.int64) if form.scales else np.zeros(len(counts), np.int64)
    )
    values = moves.region.volume * (ITEM_SIZE[form.values] if form.values else 0)
    return Payload(
        form, first, counts, values, count * (ITEM_SIZE[form.scales] if form.scales else 0)
    )


def _no_blocks(moves: Moves) -> tuple[IntArray, IntArray]:
    nothing = np.zeros_like(moves.region.start)
    return nothing, nothing


def _travelling_blocks(edge: Edge, moves: Moves) -> tuple[IntArray, IntArray]:
    """First block and number of blocks whose scales go with each move.

    An amax edge bounds every block that its region touches. Elsewhere a block goes with the move
    that has the lowest element of the block inside the receiver's box: exactly one move.
    """
    block = edge_block(edge)
    assert block is not None, "an edge with scales has a block"
    origin = moves.receiver.origin
    first, counts = cells_of(moves.region, origin, block)
    if edge.op is Op.AMAX:
        return first, counts
    lowest = np.maximum(origin + first * np.array(block, dtype=np.int64), moves.receiver.box.start)
    skip = (lowest < moves.region.start).astype(np.int64)
    return first + skip, np.maximum(counts - skip, 0)


@dataclass(frozen=True, slots=True)
class Lane:
    """The moves of one edge with their place in their messages.

    `offset` `[n]` is each move's first byte within its message.
    """

    moves: Moves
    payload: Payload
    offset: IntArray


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes from one sender rank to one receiver rank in one round."""

    round: int
    sender: int
    receiver: int
    size: int


def pack_messages(
    edges: Sequence[Edge], moves: Sequence[Moves]
) -> tuple[tuple[Lane, ...], tuple[Message, ...]]:
    """Lay the moves of all edges out in messages.

    Args:
        edges: The plan's edges.
        moves: For every edge, its moves (any subset that is closed under pairs of ranks).

    Returns:
        For every edge its lane; and all messages, ordered by round, sender, receiver.
    """
    payloads = [payload(edges[part.edge], part) for part in moves]
    keys = [np.stack([m.round, m.sender.rank, m.receiver.rank], axis=1) for m in moves]
    key = np.concatenate(keys) if keys else np.zeros((0, 3), dtype=np.int64)
    size = np.concatenate([p.padded for p in payloads]) if payloads else np.zeros(0, np.int64)
    unique, group = np.unique(key, axis=0, return_inverse=True)
    offset, total = _running_offsets(group.reshape(-1), size, len(unique))
    messages = tuple(
        Message(int(r), int(s), int(t), int(bytes_))
        for (r, s, t), bytes_ in zip(unique, total, strict=True)
    )
    bounds = np.cumsum([0, *[len(k) for k in keys]])
    lanes = tuple(
        Lane(part, sizes, offset[low:high])
        for part, sizes, low, high in zip(moves, payloads, bounds, bounds[1:], strict=False)
    )
    return lanes, messages


def _running_offsets(group: IntArray, size: IntArray, groups: int) -> tuple[IntArray, IntArray]:
    """Offsets of items within their group, in item order, and the groups' totals."""
    order = np.argsort(group, kind="stable")
    running = np.cumsum(size[order]) - size[order]
    count = np.bincount(group, minlength=groups)
    total = np.zeros(groups, dtype=np.int64)
    np.add.at(total, group, size)
    start = np.repeat(np.cumsum(total) - total, count)
    offset = np.empty_like(size)
    offset[order] = running - start
    return offset, total


def slot_offsets(messages: Sequence[Message], *, of_sender: bool) -> list[int]:
    """Byte offset of each message in its own rank's slot: peers ascending, one after another."""
    next_free: dict[tuple[int, int], int] = {}
    offsets: list[int] = []
    for message in messages:
        key = (message.round, message.sender if of_sender else message.receiver)
        offsets.append(next_free.get(key, 0))
        next_free[key] = offsets[-1] + message.size
    return offsets

"""What one rank replays each step: its part of the plan, expanded into tables.

A program holds no addresses and no live tensors. It is a function of the plan, the side and the
rank alone, so that both ends of a message agree on every byte of it without talking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tranship.runtime.addresses import BufferNumbers, BufferUse, buffer_names
from tranship.runtime.assemble import Arrivals, arrivals, assemble
from tranship.runtime.jobs import (
    DTYPE_NUMBER,
    Batch,
    Fragments,
    JobOp,
    Jobs,
    Table,
    blank_jobs,
    fields,
    join_batches,
    pad_dims,
    select_jobs,
    whole_jobs,
)
from tranship.runtime.pack_jobs import pack_batches
from tranship.runtime.unpack_jobs import assembles, unpack_batches
from tranship.schema.dtypes import ITEM_SIZE, DType
from tranship.schema.expression import IntArray
from tranship.schema.manifest import IndexSetText, IntExpression, Name, Side
from tranship.schema.moves import Instances, Moves, edge_moves, half_instances
from tranship.schema.plan import Edge, Half, PlanSide, TransferPlan
from tranship.schema.wire import Lane, align, pack_messages, slot_offsets

__all__ = ["BufferUse", "DerivedCall", "Message", "Program", "RoundProgram", "program"]


@dataclass(frozen=True, slots=True)
class Message:
    """What travels between this rank and `peer`: bytes `offset` to `offset + size` of the slot."""

    peer: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class RoundProgram:
    """One round on one rank.

    Attributes:
        number: position among the plan's rounds.
        slot_offset: first byte of the round's slot in the staging memory.
        slot_size: bytes of the slot.
        after: rounds that must be unpacked before this one may use its slot.
        messages: one per peer, in ascending order; offsets are from the start of the slot.
        jobs: `jobs.Jobs`; a sender's write the slot, a receiver's read it.
        fragments: `jobs.Fragments` that the jobs count from.
        parts: the regions of the slot that hold payload, in int64 fields `message` (position in
            `messages`), `offset` (from the start of the slot) and `size` (bytes, not 0). What
            lies between them is padding, which nobody writes.
    """

    number: int
    slot_offset: int
    slot_size: int
    after: tuple[int, ...]
    messages: tuple[Message, ...]
    jobs: Jobs
    fragments: Fragments
    parts: Table


@dataclass(frozen=True, slots=True)
class DerivedCall:
    """A recipe to run on buffers of this rank once round `after_round` is unpacked."""

    recipe: str
    buffer: str
    inputs: tuple[str, ...]
    after_round: int


@dataclass(frozen=True, slots=True)
class Program:
    """All that one rank does in a step; `fills` and `derived` are empty on a sender."""

    side: Side
    rank: int
    buffers: tuple[BufferUse, ...]
    rounds: tuple[RoundProgram, ...]
    fills: Jobs
    derived: tuple[DerivedCall, ...]
    staging_bytes: int

    @property
    def peers(self) -> tuple[int, ...]:
        """The ranks of the other side that messages go to, or come from, ascending."""
        return tuple(sorted({message.peer for item in self.rounds for message in item.messages}))


def program(plan: TransferPlan, side: Side, rank: int) -> Program:
    """Expand the part that `rank` of `side` has in `plan`.

    Raises:
        ValueError: the plan contradicts itself, as no plan does that the verifier passes.
    """
    traffic = _traffic(plan, side, rank)
    buffers = BufferNumbers(side, _declared(plan, side))
    dims = table_dims(plan)
    batch = join_batches(_batches(plan, side, traffic, buffers, dims), dims)
    fills = _fills(plan, rank, buffers, dims) if side is Side.RECEIVER else blank_jobs(0, dims)
    regions = [slot.of(side) for slot in plan.staging.slots]
    return Program(
        side=side,
        rank=rank,
        rounds=tuple(_round(plan, side, n, traffic, batch) for n in range(len(plan.rounds))),
        fills=fills,
        derived=_derived(plan, rank) if side is Side.RECEIVER else (),
        buffers=tuple(buffers.uses),
        staging_bytes=max((region.offset + region.size for region in regions), default=0),
    )


def table_dims(plan: TransferPlan) -> int:
    """Return how many dims the tables of all programs of `plan` have."""
    ranks = [len(edge.shape) for edge in plan.edges] + [len(fill.sizes) for fill in plan.fills]
    return max([2, *ranks])


def _declared(plan: TransferPlan, side: Side) -> PlanSide:
    return plan.sender if side is Side.SENDER else plan.receiver


@dataclass(frozen=True, slots=True)
class _Traffic:
    """All that one rank sends or receives.

    `messages` are ordered by round and peer, and so are `round`, `[messages]`, and `parts`, whose
    field `message` counts in them; `positions` tell for each lane where in the slot moves start.
    """

    lanes: tuple[Lane, ...]
    positions: tuple[IntArray, ...]
    messages: tuple[Message, ...]
    round: IntArray
    parts: Table


def _traffic(plan: TransferPlan, side: Side, rank: int) -> _Traffic:
    sends = side is Side.SENDER
    moves = [_own_moves(plan, number, side, rank) for number in range(len(plan.edges))]
    lanes, wire = pack_messages(plan.edges, moves)
    offsets = slot_offsets(wire, of_sender=sends)
    messages = tuple(
        Message(item.receiver if sends else item.sender, offset, item.size)
        for item, offset in zip(wire, offsets, strict=True)
    )
    rounds = np.array([item.round for item in wire], dtype=np.int64)
    peers = max(plan.sender.world_size, plan.receiver.world_size)
    keys = rounds * peers + np.array([message.peer for message in messages], dtype=np.int64)
    numbers = [
        np.searchsorted(keys, part.round * peers + (part.receiver if sends else part.sender).rank)
        for part in moves
    ]
    starts = np.array(offsets, dtype=np.int64)
    positions = [starts[n] + lane.offset for n, lane in zip(numbers, lanes, strict=True)]
    parts = _parts(lanes, positions, numbers)
    return _Traffic(lanes, tuple(positions), messages, rounds, parts)


def _own_moves(plan: TransferPlan, number: int, side: Side, rank: int) -> Moves:
    if side is Side.RECEIVER:
        return edge_moves(plan, number, np.array([rank], dtype=np.int64))
    moves = edge_moves(plan, number)
    return moves.take(np.flatnonzero(moves.sender.rank == rank))


def _parts(lanes: Sequence[Lane], positions: list[IntArray], numbers: list[IntArray]) -> Table:
    rows = [np.zeros((0, 3), dtype=np.int64)]
    for lane, position, number in zip(lanes, positions, numbers, strict=True):
        values, scales = lane.payload.value_bytes, lane.payload.scale_bytes
        rows.append(np.stack([number, position, values], axis=1))
        rows.append(np.stack([number, position + align(values), scales], axis=1))
    table = np.concatenate(rows)
    table = table[table[:, 2] > 0]
    table = table[np.lexsort([table[:, 1], table[:, 0]])]
    parts = np.zeros(len(table), fields("message offset size", "", 0))
    parts["message"], parts["offset"], parts["size"] = table.T
    return parts


def _batches(
    plan: TransferPlan, side: Side, traffic: _Traffic, buffers: BufferNumbers, dims: int
) -> list[Batch]:
    """Return the jobs of all edges."""
    batches: list[Batch] = []
    to_assemble: list[Arrivals] = []
    for edge, lane, position in zip(plan.edges, traffic.lanes, traffic.positions, strict=True):
        _require_unit_steps(edge, lane)
        if side is Side.SENDER:
            batches += pack_batches(edge, lane, position, buffers, dims)
        elif assembles(edge):
            to_assemble.append(arrivals(edge, lane, position, plan.receiver, buffers, dims))
        else:
            batches += unpack_batches(edge, lane, position, buffers, dims)
    return batches + assemble(to_assemble, dims)


def _require_unit_steps(edge: Edge, lane: Lane) -> None:
    """Refuse stepped regions where blocks are counted."""
    if edge.receiver.scale and any(step != 1 for step in lane.moves.region.step):
        raise ValueError(f"{edge.tensor!r} has scales and moves in steps {lane.moves.region.step}")


def _round(
    plan: TransferPlan, side: Side, number: int, traffic: _Traffic, batch: Batch
) -> RoundProgram:
    slot = plan.staging.slots[plan.rounds[number].slot].of(side)
    low, high = np.searchsorted(traffic.round, [number, number + 1]).tolist()
    messages = traffic.messages[low:high]
    if messages and messages[-1].offset + messages[-1].size > slot.size:
        raise ValueError(f"the messages of round {number} exceed its slot of {slot.size} bytes")
    first, last = np.searchsorted(traffic.parts["message"], [low, high]).tolist()
    parts = traffic.parts[first:last].copy()
    parts["message"] -= low
    own = select_jobs(batch, np.flatnonzero(batch.round == number))
    return RoundProgram(
        number=number,
        slot_offset=slot.offset,
        slot_size=slot.size,
        after=plan.rounds[number].after,
        messages=messages,
        jobs=own.jobs,
        fragments=own.fragments,
        parts=parts,
    )


def _instances(
    declared: PlanSide,
    rank: int,
    indices: dict[Name, IndexSetText],
    at: dict[Name, IntExpression],
    sizes: tuple[IntExpression, ...] = (),
    strides: tuple[IntExpression, ...] = (),
    offset: IntExpression = 0,
) -> Instances:
    """Return where a strided region that belongs to no tensor exists on `rank`."""
    start = (0,) * len(sizes)
    half = Half(
        buffer="any",
        dtype=DType.U8,
        at=at,
        start=start,
        extent=sizes,
        offset=offset,
        strides=strides,
    )
    return half_instances(half, indices, declared, np.array([rank], dtype=np.int64))


def _fills(plan: TransferPlan, rank: int, buffers: BufferNumbers, dims: int) -> Jobs:
    tables = [blank_jobs(0, dims)]
    for number, fill in enumerate(plan.fills):
        found = _instances(
            plan.receiver, rank, fill.indices, fill.at, fill.sizes, fill.strides, fill.offset
        )
        jobs = whole_jobs(JobOp.FILL, number, found.box.extent, dims)
        jobs["fragment_count"] = 0
        jobs["value"] = fill.value
        jobs["target"] = buffers.number(fill.buffer, fill.dtype, found.environment, len(jobs))
        jobs["target_dtype"] = DTYPE_NUMBER[fill.dtype]
        jobs["target_offset"] = found.offset * ITEM_SIZE[fill.dtype]
        jobs["target_strides"] = pad_dims(found.strides, dims, 0)
        tables.append(jobs)
    return np.concatenate(tables)


def _derived(plan: TransferPlan, rank: int) -> tuple[DerivedCall, ...]:
    calls: list[DerivedCall] = []
    for step in plan.derived:
        found = _instances(plan.receiver, rank, step.indices, step.at)
        named: list[list[str]] = []
        for text in (step.buffer, *step.inputs):
            names, row = buffer_names(text, plan.receiver, found.environment, len(found.rank))
            named.append([names[index] for index in row.tolist()])
        for buffer, *inputs in zip(*named, strict=True):
            calls.append(DerivedCall(step.recipe, buffer, tuple(inputs), step.after))
    return tuple(calls)

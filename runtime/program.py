"""What one rank replays each step: its part of the plan, expanded into tables.

A program holds no addresses and no live tensors. It is a function of the plan, the side and the
rank alone, so that both ends of a message agree on every byte of it without talking.
"""

from dataclasses import dataclass

import numpy as np

from tranship.runtime.addresses import BufferNumbers, BufferUse, buffer_names
from tranship.runtime.assemble import arrivals, assemble
from tranship.runtime.jobs import (
    DTYPE_NUMBER,
    Batch,
    Fragments,
    JobOp,
    Jobs,
    Table,
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
from tranship.schema.plan import FillEdge, Half, PlanSide, TransferPlan
from tranship.schema.wire import Lane, align, pack_messages, slot_offsets

__all__ = ["BufferUse", "DerivedCall", "Message", "Program", "RoundProgram", "program"]

MIN_DIMS = 2
"""Tables have at least two dims, so that every job is a set of two-dimensional tiles."""


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


def program(plan: TransferPlan, side: Side, rank: int) -> Program:
    """Expand the part that `rank` of `side` has in `plan`.

    Raises:
        ValueError: the plan is not one that the verifier passes, and cannot be expanded.
    """
    sends = side is Side.SENDER
    buffers = BufferNumbers(side, plan.sender if sends else plan.receiver)
    dims = table_dims(plan)
    lanes, wire = pack_messages(plan.edges, own_moves(plan, side, rank))
    keys = np.array([(m.round, m.receiver if sends else m.sender) for m in wire], np.int64)
    ...

"""The rounds of a program as launches: what packs, unpacks and digests them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tranship.runtime.execute import Memory, run_jobs
from tranship.runtime.jobs import DTYPES, ITEM_SIZES, NOWHERE, SLOT, Fragments, JobOp, Jobs
from tranship.runtime.kernels.graphs import as_one
from tranship.runtime.kernels.launch import Launch, Shared, bind_digests, bind_tables
from tranship.runtime.kernels.lower_blocks import lower_blocks, tile_blocks
from tranship.runtime.kernels.lower_conversions import convertible, lower_conversions
from tranship.runtime.kernels.lower_copies import Lowered, lower_copies, lower_fills
from tranship.runtime.kernels.lower_digests import lower_digests, lower_flat_digests
from tranship.runtime.kernels.tables import LANES, Addresses, Mask, Table, Wire
from tranship.runtime.program import Program, RoundProgram
from tranship.schema.dtypes import DType
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Side

_VALUES = tuple(
    DTYPES.index(dtype)
    for dtype in (DType.F32, DType.BF16, DType.F16, DType.F8E4M3FN, DType.F8E5M2)
)


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of all messages of a program, in the order of rounds and messages.

    `sums` is int64 `[2, messages, LANES]`: of what was on the wire, and of what was kept of it.
    `first` counts the messages before each round.
    """

    sums: Tensor
    first: tuple[int, ...]

    def totals(self, out: Tensor | None = None) -> Tensor:
        """Add the lanes up, on the device: int64 `[2, messages]`, in `out` if it is given."""
        return torch.sum(self.sums, dim=-1, out=out)


@dataclass(frozen=True, slots=True)
class BoundJobs:
    """Launches of some jobs, and which jobs' values they digest, `[jobs]` bool.

    Without `only_kernels` some of them are torch's, which allocate as they like.
    """

    launches: tuple[Launch, ...]
    digested: Mask
    only_kernels: bool


@dataclass(frozen=True, slots=True)
class Kernels:
    """A program bound to memory on a device; every launch goes to the current stream.

    `rounds` are the launches of each round, of a sender's pack or of a receiver's unpack, and
    `steps` the same as one call each.
    """

    fills: tuple[Launch, ...]
    rounds: tuple[tuple[Launch, ...], ...]
    steps: tuple[Launch, ...]
    digests: Digests

    def begin(self) -> None:
        """Clear the digests, and write the constants."""
        self.digests.sums.zero_()
        for launch in self.fills:
            launch()

    def run(self, number: int) -> None:
        """Pack or unpack a round, and digest what passed."""
        self.steps[number]()


def bind_kernels(own: Program, buffers: Sequence[Tensor], slots: Sequence[Tensor]) -> Kernels:
    """Bind a program to its buffers and to the slot of each of its rounds.

    Args:
        own: The program.
        buffers: One tensor per `Program.buffers`; only their first elements and storages count.
        slots: uint8 `[slot_size]` per round, on the same device, at multiples of 16 bytes.
    """
    first = tuple(np.cumsum([0, *(len(item.messages) for item in own.rounds)]).tolist())
    device = next((tensor.device for tensor in (*slots, *buffers)), torch.device("cpu"))
    sums = torch.zeros((2, first[-1], LANES), dtype=torch.int64, device=device)
    digests = Digests(sums, first)
    fills = lower_fills(own.fills, Addresses.of(buffers, 0))
    rounds = [
        _bind_round(own.side, item, buffers, slot, digests)
        for item, slot in zip(own.rounds, slots, strict=True)
    ]
    return Kernels(
        tuple(bind_tables(fills, Shared(sums, sums, sums))),
        tuple(bound.launches for bound in rounds),
        tuple(as_one(bound.launches, device, record=bound.only_kernels) for bound in rounds),
        digests,
    )


def _bind_round(
    side: Side, item: RoundProgram, buffers: Sequence[Tensor], slot: Tensor, digests: Digests
) -> BoundJobs:
    at = Addresses.of(buffers, slot)
    wire = _wire(item, digests.first[item.number], of_sender=side is Side.SENDER)
    memory = Memory(buffers, slot)
    sent, held = digests.sums

    def digest_slot(parts: IntArray, sums: Tensor) -> list[Launch]:
        tables = _slot_digests(item, slot.data_ptr(), parts, digests.first[item.number])
        return bind_digests(tables, sums)

    if side is Side.SENDER:
        bound = bind_jobs(item.jobs, item.fragments, wire, at, memory, kept=sent)
        rest = _other_parts(item, bound.digested, of_sender=True)
        return replace(bound, launches=(*bound.launches, *digest_slot(rest, sent)))
    bound = bind_jobs(item.jobs, item.fragments, wire, at, memory, kept=held, taken=sent)
    copies = item.jobs["op"] == JobOp.COPY
    unread = np.flatnonzero(copies & ~bound.digested)
    launches = (
        *digest_slot(_other_parts(item, bound.digested, of_sender=False), sent),
        *bound.launches,
        *bind_digests(written_digests(item.jobs[unread], wire.take(unread), at), held),
        *digest_slot(_other_parts(item, copies, of_sender=False), held),
    )
    return replace(bound, launches=launches)


def _other_parts(item: RoundProgram, chosen: Mask, *, of_sender: bool) -> IntArray:
    """Return the parts of the slot in which none of the chosen jobs has its values."""
    jobs = item.jobs[chosen]
    if of_sender:
        offsets = jobs["target_offset"]
    else:
        offsets = item.fragments["offset"][jobs["fragment_first"]]
    covered = np.searchsorted(item.parts["offset"], offsets)
    return np.setdiff1d(np.arange(len(item.parts)), covered)


def bind_jobs(
    jobs: Jobs,
    fragments: Fragments,
    wire: Wire,
    at: Addresses,
    memory: Memory,
    *,
    kept: Tensor,
    taken: Tensor | None = None,
) -> BoundJobs:
    """Bind jobs, fills excepted, to memory. What no kernel does is left to `execute.py`.

    Args:
        jobs: The jobs.
        fragments: The table that they count from.
        wire: Which digests they add to, and where their values lie in messages.
        at: The addresses of their buffers.
        memory: The same buffers as tensors.
        kept: Digests, int64 `[entries, LANES]`, of what targets hold.
        taken: The same of what copies read, if that is wanted, too.
    """
    by_kernel = _by_kernel(jobs, fragments)
    digested = np.zeros(len(jobs), bool)
    op = jobs["op"]

    def chosen(*ops: JobOp) -> IntArray:
        return np.flatnonzero(by_kernel & np.isin(op, ops))

    copies, blocks = chosen(JobOp.COPY), chosen(JobOp.QUANTIZE, JobOp.AMAX)
    converted = chosen(JobOp.CAST, JobOp.DEQUANTIZE)
    moved = lower_copies(jobs[copies], fragments, wire.take(copies), at, taken=taken is not None)
    digested[copies] = moved.digested
    tiled = tile_blocks(jobs[blocks], fragments)
    amaxes = torch.zeros(tiled.amaxes, dtype=torch.int32, device=kept.device)
    found = lower_blocks(jobs[blocks], tiled, wire.take(blocks), at, amaxes.data_ptr())
    digested[blocks] = found.lowered.digested
    tables: list[Table] = [*found.before, *_in_order(moved, found.lowered)]
    tables += lower_conversions(jobs[converted], fragments, at)
    shared = Shared(kept if taken is None else taken, kept, amaxes)
    launches = bind_tables(tables, shared)
    if tiled.amaxes:
        launches.insert(0, lambda: _clear(amaxes))
    rest = jobs[np.flatnonzero(~by_kernel)]
    if len(rest):
        launches.append(lambda: run_jobs(rest, fragments, memory))
    return BoundJobs(tuple(launches), digested, not len(rest))


def _clear(amaxes: Tensor) -> None:
    amaxes.zero_()


def _in_order(*lowered: Lowered) -> list[Table]:
    """Return all launches, those with most programs first."""
    tables = [table for each in lowered for table in each.tables]
    return sorted(tables, key=lambda table: -len(table.records))


def _by_kernel(jobs: Jobs, fragments: Fragments) -> Mask:
    """Which jobs the kernels can do."""
    good = np.ones(len(jobs), bool)
    converted = np.flatnonzero(np.isin(jobs["op"], (JobOp.CAST, JobOp.DEQUANTIZE)))
    good[converted] = convertible(jobs[converted], fragments)
    blocks = np.flatnonzero(np.isin(jobs["op"], (JobOp.QUANTIZE, JobOp.AMAX)))
    scale = np.where(fragments["scale"] == NOWHERE, -1, fragments["scale_dtype"])
    kind = fragments["dtype"] * len(DTYPES) + scale + 1
    known = np.isin(fragments["dtype"], _VALUES)
    # All values of a job must be of one kind: a kernel is compiled for it.
    same = np.concatenate([[0], np.cumsum((kind[1:] != kind[:-1]) | ~known[1:])])
    first = jobs["fragment_first"][blocks]
    last = first + jobs["fragment_count"][blocks] - 1
    some = jobs["fragment_count"][blocks] > 0
    alike = known[first * some] & (same[last * some] == same[first * some])
    good[blocks] = some & alike
    return good


def _wire(item: RoundProgram, first: int, *, of_sender: bool) -> Wire:
    """Return where in messages the values of a round's jobs lie, of copies only for receivers."""
    jobs = item.jobs
    starts = np.array([message.offset for message in item.messages], np.int64)
    if of_sender:
        values = np.where(jobs["target"] == SLOT, jobs["target_offset"], -1)
        scales = np.where(jobs["scale_target"] == SLOT, jobs["scale_offset"], -1)
    else:
        read = item.fragments[jobs["fragment_first"]] if len(item.fragments) else item.fragments
        values = np.where(jobs["op"] == JobOp.COPY, read["offset"], -1)
        scales = np.full(len(jobs), -1)
    message = np.searchsorted(starts, np.maximum(values, scales), side="right") - 1
    start = starts[message] if len(starts) else np.zeros(len(jobs), np.int64)
    return Wire(
        np.where(message >= 0, first + message, -1),
        np.where(values >= 0, values - start, -1),
        np.where(scales >= 0, scales - start, -1),
    )


def _slot_digests(item: RoundProgram, slot: int, parts: IntArray, first: int) -> tuple[Table, ...]:
    own = item.parts[parts]
    starts = np.array([message.offset for message in item.messages], np.int64)
    return lower_flat_digests(
        slot + own["offset"],
        own["size"],
        first + own["message"],
        own["offset"] - starts[own["message"]],
    )


def written_digests(jobs: Jobs, wire: Wire, at: Addresses) -> tuple[Table, ...]:
    """Return the launches that read back what jobs have written."""
    return lower_digests(
        at(jobs["target"], jobs["target_offset"]),
        jobs["inner_extent"],
        jobs["target_strides"],
        ITEM_SIZES[jobs["target_dtype"]],
        wire.entry,
        wire.offset,
    )

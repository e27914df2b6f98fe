"""Direct jobs as launches, and what checks them: samples of what a sender would have packed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tranship.runtime.direct import GROUPS, Direct, Outgoing
from tranship.runtime.execute import Memory
from tranship.runtime.jobs import ITEM_SIZES, NOWHERE, Jobs, select_jobs
from tranship.runtime.kernels.graphs import as_one
from tranship.runtime.kernels.launch import Launch, Shared, bind_digests, bind_tables
from tranship.runtime.kernels.lower_copies import lower_fills
from tranship.runtime.kernels.lower_digests import lower_digests, lower_flat_digests
from tranship.runtime.kernels.packed import PackedKernels, bind_packed
from tranship.runtime.kernels.rounds import BoundJobs, bind_jobs, written_digests
from tranship.runtime.kernels.tables import Addresses, Table, Wire
from tranship.runtime.kernels.totals import Totals
from tranship.runtime.packed import PackedScales
from tranship.schema.expression import IntArray
from tranship.schema.wire import align


@dataclass(frozen=True, slots=True)
class DirectKernels:
    """A receiver's direct jobs, bound; every launch goes to the current stream.

    `steps` are whole steps, by group: they clear, write all buffers, pack scales, pack again what
    the group's other jobs have transformed, digest and add up. `totals` come to be digests, int64:
    of what the buffers hold of what was copied, by sender and group, `[senders * GROUPS]`; of the
    samples, by sender, `[senders]`; and of what was transformed, one. `packed` tells what became of
    the scales. `scratch` is memory that tables have addresses of.
    """

    steps: tuple[Launch, ...]
    packed: PackedKernels
    totals: Totals
    scratch: tuple[Tensor, ...]

    def run(self, group: int) -> None:
        """Write all buffers, and digest what they hold of every group, and samples of `group`."""
        self.steps[group]()

    def found(self, group: int) -> list[tuple[int, int]]:
        """Return by sender, once the GPU is done, the digests of its group and of all it wrote.

        Digests are sums: the second is what one group of all jobs would have. What was made of
        several senders' parts counts as the first one's.
        """
        *kept, transformed = self.totals.host.tolist()
        senders = len(kept) // (GROUPS + 1)
        sampled = kept[senders * GROUPS :]
        return [
            (
                kept[sender * GROUPS + group] + sampled[sender],
                sum(kept[sender * GROUPS : (sender + 1) * GROUPS]) + transformed * (sender == 0),
            )
            for sender in range(senders)
        ]


@dataclass(frozen=True, slots=True)
class SampleKernels:
    """What a sender packs of its messages to its receivers for comparison.

    `samples` are whole steps, by group: they clear, pack, digest and add up; `sources` is what they
    read. `totals` come to be the digests by receiver, int64 `[receivers]`. `scratch` is memory that
    tables have addresses of.
    """

    samples: tuple[Launch, ...]
    sources: tuple["Sources", ...]
    totals: Totals
    scratch: Tensor

    def run(self, group: int) -> None:
        """Pack and digest the jobs of a group.

        Raises:
            RuntimeError: a buffer is not where it was.
        """
        # A kernel that reads memory that was given back takes the whole process's GPU from it.
        if not self.sources[group].unmoved():
            raise RuntimeError("a buffer is not where it was when it was bound")
        self.samples[group]()


@dataclass(frozen=True, slots=True)
class Sources:
    """Buffers, and where they were."""

    buffers: tuple[Tensor, ...]
    addresses: tuple[int, ...]

    @classmethod
    def of(cls, buffers: Iterable[Tensor]) -> "Sources":
        """Remember where buffers are."""
        held = tuple(buffers)
        return cls(held, tuple(map(Tensor.data_ptr, held)))

    def unmoved(self) -> bool:
        """Whether they are still there."""
        return tuple(map(Tensor.data_ptr, self.buffers)) == self.addresses


def bind_direct(
    plan: Direct,
    buffers: Sequence[Tensor],
    sources: Sequence[Sequence[Tensor]],
    device: torch.device,
    packed: Sequence[PackedScales] = (),
) -> DirectKernels:
    """Bind direct jobs to the memory that `device` runs them on.

    Args:
        plan: The jobs.
        buffers: One tensor per `Direct.buffers`.
        sources: The same of each sender's buffers, mapped here.
        device: A GPU that reaches all of them.
        packed: Those of the buffers that hold scales to be packed.
    """
    every = [*buffers, *(tensor for tensors in sources for tensor in tensors)]
    scratch = torch.zeros(plan.scratch_bytes, dtype=torch.uint8, device=device)
    # Of each sender all groups and a sample; and what was transformed.
    totals = Totals.of(len(sources) * (GROUPS + 1) + 1, device)
    sums = totals.lanes
    at, memory = Addresses.of(every, scratch), Memory(every, scratch)
    wire = Wire(plan.entry, plan.values, plan.scales)
    first = plan.before
    before = bind_jobs(
        first.jobs, first.fragments, Wire.nowhere(len(first.jobs)), at, memory, kept=sums
    )
    bound = bind_jobs(plan.batch.jobs, plan.batch.fragments, wire, at, memory, kept=sums)
    unread = np.flatnonzero(~bound.digested & (plan.entry >= 0))
    digests = [
        *written_digests(plan.batch.jobs[unread], wire.take(unread), at),
        *_scale_digests(plan.batch.jobs, wire, at),
        *_transformed_digests(plan, len(sums) - 1, at),
    ]
    scales = bind_packed(packed, device)
    write = (
        totals.clear,
        *bind_tables(lower_fills(plan.fills, at), Shared(sums, sums, sums)),
        *before.launches,
        *bound.launches,
        *bind_digests(digests, sums),
        *scales.write,
        *scales.check,
    )
    samples, repacked = _receiver_samples(plan, sources, sums)
    only_kernels = before.only_kernels and bound.only_kernels
    steps = _steps(write, samples, totals.add_up, device, record=only_kernels)
    return DirectKernels(steps, scales, totals, (scratch, repacked))


def _steps(
    write: Sequence[Launch],
    samples: Sequence[Sequence[BoundJobs]],
    last: Launch,
    device: torch.device,
    *,
    record: bool,
) -> tuple[Launch, ...]:
    """Return one call by group. Groups of which nothing is packed again share theirs."""
    plain = as_one([*write, last], device, record=record)
    return tuple(
        _joined(parts, device, write, (last,), record=record)
        if any(part.launches for part in parts)
        else plain
        for parts in samples
    )


def bind_samples(sent: Sequence[Outgoing], buffers: Sequence[Tensor]) -> SampleKernels:
    """Bind a sender's samples of what it would pack for each of its receivers.

    Args:
        sent: For each receiver the jobs that pack for it.
        buffers: One tensor per buffer of the sender's program.
    """
    device = buffers[0].device
    totals = Totals.of(len(sent), device)
    rows = [[np.flatnonzero(part.group == group) for part in sent] for group in range(GROUPS)]
    need = [
        sum(_sample_bytes(part, row) for part, row in zip(sent, each, strict=True)) for each in rows
    ]
    scratch = torch.zeros(max(need), dtype=torch.uint8, device=device)
    samples: list[Launch] = []
    for each in rows:
        parts: list[BoundJobs] = []
        used = 0
        for number, (part, row) in enumerate(zip(sent, each, strict=True)):
            size = _sample_bytes(part, row)
            entry = np.full(len(row), number, np.int64)
            own = scratch[used : used + size]
            parts.append(_sample(part, row, entry, buffers, own, totals.lanes))
            used += size
        samples.append(_joined(parts, device, (totals.clear,), (totals.add_up,)))
    sources = tuple(
        Sources.of(buffers[number] for number in map(int, _read(sent, each))) for each in rows
    )
    return SampleKernels(tuple(samples), sources, totals, scratch)


def _read(sent: Sequence[Outgoing], rows: Sequence[IntArray]) -> IntArray:
    """Return the numbers of the buffers that some jobs of each message read."""
    read = [np.zeros(0, np.int64)]
    for part, row in zip(sent, rows, strict=True):
        fragments = select_jobs(part.batch, row).fragments
        read += [fragments["source"], fragments["scale"]]
    numbers = np.unique(np.concatenate(read))
    return numbers[numbers >= 0]


def _joined(
    parts: Sequence[BoundJobs],
    device: torch.device,
    before: Sequence[Launch],
    after: Sequence[Launch],
    *,
    record: bool = True,
) -> Launch:
    """Return one call of all parts, between other launches."""
    record = record and all(part.only_kernels for part in parts)
    launches = [launch for part in parts for launch in part.launches]
    return as_one([*before, *launches, *after], device, record=record)


def _receiver_samples(
    plan: Direct, sources: Sequence[Sequence[Tensor]], sums: Tensor
) -> tuple[list[list[BoundJobs]], Tensor]:
    """Pack what was transformed once more, of one group at a time, from the senders' memory."""
    groups = [
        [unseen[unseen % GROUPS == group] for unseen in plan.unseen] for group in range(GROUPS)
    ]
    need = [
        _sample_bytes(s, r) for rows in groups for s, r in zip(plan.outgoing, rows, strict=True)
    ]
    scratch = torch.zeros(max([0, *need]), dtype=torch.uint8, device=sums.device)
    samples: list[list[BoundJobs]] = []
    for rows in groups:
        parts: list[BoundJobs] = []
        for sender, (part, row) in enumerate(zip(plan.outgoing, rows, strict=True)):
            entry = np.full(len(row), len(sources) * GROUPS + sender, np.int64)
            parts.append(_sample(part, row, entry, sources[sender], scratch, sums))
        samples.append(parts)
    return samples, scratch


def _sample_bytes(sent: Outgoing, rows: IntArray) -> int:
    values, scales = _payload(sent.batch.jobs[rows])
    return int(np.sum(align(values) + align(scales)))


def _payload(jobs: Jobs) -> tuple[IntArray, IntArray]:
    """Return how many bytes of values and of scales jobs write."""
    values = np.prod(jobs["inner_extent"], axis=1) * ITEM_SIZES[jobs["target_dtype"]]
    scales = np.prod(jobs["scale_counts"], axis=1) * ITEM_SIZES[jobs["scale_dtype"]]
    return (
        np.where(jobs["target"] == NOWHERE, 0, values),
        np.where(jobs["scale_target"] == NOWHERE, 0, scales),
    )


def _sample(
    sent: Outgoing,
    rows: IntArray,
    entry: IntArray,
    buffers: Sequence[Tensor],
    scratch: Tensor,
    sums: Tensor,
) -> BoundJobs:
    """Pack some jobs into `scratch`, one after another, and digest them."""
    own = select_jobs(sent.batch, rows)
    values, scales = _payload(own.jobs)
    sizes = align(values) + align(scales)
    start = np.cumsum(sizes) - sizes
    own.jobs["target_offset"] = start
    own.jobs["scale_offset"] = start + align(values)
    at = Addresses.of(buffers, scratch)
    wire = Wire(entry, sent.values[rows], sent.scales[rows])
    bound = bind_jobs(own.jobs, own.fragments, wire, at, Memory(buffers, scratch), kept=sums)
    rest = np.flatnonzero(~bound.digested & (values > 0))
    also = np.flatnonzero(scales > 0)
    tables = lower_flat_digests(
        scratch.data_ptr()
        + np.concatenate([own.jobs["target_offset"][rest], own.jobs["scale_offset"][also]]),
        np.concatenate([values[rest], scales[also]]),
        np.concatenate([entry[rest], entry[also]]),
        np.concatenate([wire.offset[rest], wire.scale_offset[also]]),
    )
    return replace(bound, launches=(*bound.launches, *bind_digests(tables, sums)))


def _transformed_digests(plan: Direct, entry: int, at: Addresses) -> tuple[Table, ...]:
    """Read back what jobs have written that is no copy of what was sent, one after another."""
    jobs = plan.batch.jobs[np.flatnonzero(plan.entry < 0)]
    values, scales = _payload(jobs)
    sizes = align(values) + align(scales)
    start = np.cumsum(sizes) - sizes
    wire = Wire(np.full(len(jobs), entry, np.int64), start, start + align(values))
    written = np.flatnonzero(jobs["target"] != NOWHERE)
    return (
        *written_digests(jobs[written], wire.take(written), at),
        *_scale_digests(jobs, wire, at),
    )


def _scale_digests(jobs: Jobs, wire: Wire, at: Addresses) -> tuple[Table, ...]:
    """Read back the scales that jobs have written."""
    index = np.flatnonzero((wire.scale_offset >= 0) & (jobs["scale_target"] != NOWHERE))
    own, place = jobs[index], wire.take(index)
    return lower_digests(
        at(own["scale_target"], own["scale_offset"]),
        own["scale_counts"],
        own["scale_strides"],
        ITEM_SIZES[own["scale_dtype"]],
        place.entry,
        place.scale_offset,
    )

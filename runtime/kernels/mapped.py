"""Direct jobs as launches, and what checks them: samples of what a sender would have packed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tranship.runtime.direct import GROUPS, Direct, Outgoing
from tranship.runtime.execute import Memory
from tranship.runtime.jobs import ITEM_SIZES, NOWHERE, Jobs, select_jobs
from tranship.runtime.kernels.launch import Launch, Shared, bind_digests, bind_tables
from tranship.runtime.kernels.lower_copies import lower_fills
from tranship.runtime.kernels.lower_digests import lower_digests, lower_flat_digests
from tranship.runtime.kernels.rounds import bind_jobs, written_digests
from tranship.runtime.kernels.tables import LANES, Addresses, Table, Wire
from tranship.schema.expression import IntArray
from tranship.schema.wire import align


@dataclass(frozen=True, slots=True)
class DirectKernels:
    """A receiver's direct jobs, bound; every launch goes to the current stream.

    `sums` is int64 `[senders * GROUPS, LANES]`: digests of what the buffers hold, by sender and
    group. `samples` are, by group, launches that pack again what the group's other jobs have
    transformed. `scratch` is memory that tables have addresses of.
    """

    launches: tuple[Launch, ...]
    samples: tuple[tuple[Launch, ...], ...]
    sums: Tensor
    scratch: tuple[Tensor, ...]

    def run(self, group: int) -> None:
        """Write all buffers, and digest what they hold of every group, and samples of `group`."""
        self.sums.zero_()
        for launch in (*self.launches, *self.samples[group]):
            launch()


@dataclass(frozen=True, slots=True)
class SampleKernels:
    """What a sender packs of its messages to its receivers for comparison, by group.

    `sums` is int64 `[receivers, LANES]`; `scratch` is memory that tables have addresses of.
    """

    samples: tuple[tuple[Launch, ...], ...]
    sums: Tensor
    scratch: Tensor

    def run(self, group: int) -> None:
        """Pack and digest the jobs of a group."""
        self.sums.zero_()
        for launch in self.samples[group]:
            launch()


def bind_direct(
    plan: Direct, buffers: Sequence[Tensor], sources: Sequence[Sequence[Tensor]]
) -> DirectKernels:
    """Bind direct jobs.

    Args:
        plan: The jobs.
        buffers: One tensor per `Direct.buffers`.
        sources: The same of each sender's buffers, mapped here.
    """
    device = buffers[0].device
    every = [*buffers, *(tensor for tensors in sources for tensor in tensors)]
    scratch = torch.zeros(plan.scratch_bytes, dtype=torch.uint8, device=device)
    sums = torch.zeros((len(sources) * GROUPS, LANES), dtype=torch.int64, device=device)
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
    ]
    samples, packed = _receiver_samples(plan, sources, sums)
    return DirectKernels(
        (
            *bind_tables(lower_fills(plan.fills, at), Shared(sums, sums, sums)),
            *before.launches,
            *bound.launches,
            *bind_digests(digests, sums),
        ),
        samples,
        sums,
        (scratch, packed),
    )


def bind_samples(sent: Sequence[Outgoing], buffers: Sequence[Tensor]) -> SampleKernels:
    """Bind a sender's samples of what it would pack for each of its receivers.

    Args:
        sent: For each receiver the jobs that pack for it.
        buffers: One tensor per buffer of the sender's program.
    """
    device = buffers[0].device
    sums = torch.zeros((len(sent), LANES), dtype=torch.int64, device=device)
    rows = [[np.flatnonzero(part.group == group) for part in sent] for group in range(GROUPS)]
    need = [
        sum(_sample_bytes(part, row) for part, row in zip(sent, each, strict=True)) for each in rows
    ]
    scratch = torch.zeros(max(need), dtype=torch.uint8, device=device)
    samples: list[tuple[Launch, ...]] = []
    for each in rows:
        launches: list[Launch] = []
        used = 0
        for number, (part, row) in enumerate(zip(sent, each, strict=True)):
            size = _sample_bytes(part, row)
            entry = np.full(len(row), number, np.int64)
            launches += _sample(part, row, entry, buffers, scratch[used : used + size], sums)
            used += size
        samples.append(tuple(launches))
    return SampleKernels(tuple(samples), sums, scratch)


def _receiver_samples(
    plan: Direct, sources: Sequence[Sequence[Tensor]], sums: Tensor
) -> tuple[tuple[tuple[Launch, ...], ...], Tensor]:
    """Pack what was transformed once more, of one group at a time, from the senders' memory."""
    groups = [
        [unseen[unseen % GROUPS == group] for unseen in plan.unseen] for group in range(GROUPS)
    ]
    need = [
        _sample_bytes(s, r) for rows in groups for s, r in zip(plan.outgoing, rows, strict=True)
    ]
    scratch = torch.zeros(max([0, *need]), dtype=torch.uint8, device=sums.device)
    samples: list[tuple[Launch, ...]] = []
    for group, rows in enumerate(groups):
        launches: list[Launch] = []
        for sender, (part, row) in enumerate(zip(plan.outgoing, rows, strict=True)):
            entry = np.full(len(row), sender * GROUPS + group, np.int64)
            launches += _sample(part, row, entry, sources[sender], scratch, sums)
        samples.append(tuple(launches))
    return tuple(samples), scratch


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
) -> tuple[Launch, ...]:
    """Pack some jobs into `scratch`, one after another, and digest them."""
    if not len(rows):
        return ()
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
    return (*bound.launches, *bind_digests(tables, sums))


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

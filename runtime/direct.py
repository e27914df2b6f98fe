"""A step in which a receiver reads the senders' memory itself, and nothing is on a wire.

Where memory can be mapped, every move is one job from the sender's buffers to the receiver's: what
the sender would pack and what the receiver would unpack, in one. The jobs are made from the two
programs, so that plan, messages and digests mean the same however bytes travel. Only amaxes that
senders find for a receiver still go through memory between the two, a few bytes a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tranship.runtime.addresses import BufferUse
from tranship.runtime.jobs import (
    ITEM_SIZES,
    NOWHERE,
    SLOT,
    Batch,
    JobOp,
    Jobs,
    join_batches,
    select_jobs,
    spans,
)
from tranship.runtime.program import DerivedCall, Program, RoundProgram
from tranship.schema.expression import IntArray
from tranship.schema.wire import align

GROUPS = 64
"""Into how many groups the jobs of two ranks are dealt, to be compared group by group."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """All jobs by which a sender packs what goes to one receiver.

    Attributes:
        batch: the jobs with their rounds, as the sender's program has them.
        values: byte of the round's message at which the values of each job lie, or -1, `[jobs]`.
        scales: the same of scales, or amaxes.
    """

    batch: Batch
    values: IntArray
    scales: IntArray

    @property
    def group(self) -> IntArray:
        """The group of each job, `[jobs]`; both ends deal them alike."""
        return np.arange(len(self.values), dtype=np.int64) % GROUPS


@dataclass(frozen=True, slots=True)
class Direct:
    """What a receiver rank does in a step.

    Jobs number its own `buffers`, then those of each sender in `sources`, in order; `SLOT` is
    memory of `scratch_bytes` for amaxes, which jobs of `before` write.

    `entry`, `values` and `scales` `[jobs]` tell which digest a job adds to (sender's position times
    `GROUPS`, plus the group) and where in the message its values and scales would lie; -1 for jobs
    that leave no copy of anything that was sent. `unseen` are the jobs, by sender, whose messages
    end in such jobs: rows of `outgoing`.
    """

    rank: int
    buffers: tuple[BufferUse, ...]
    senders: tuple[int, ...]
    sources: tuple[tuple[BufferUse, ...], ...]
    outgoing: tuple[Outgoing, ...]
    unseen: tuple[IntArray, ...]
    before: Batch
    batch: Batch
    entry: IntArray
    values: IntArray
    scales: IntArray
    scratch_bytes: int
    fills: Jobs
    derived: tuple[DerivedCall, ...]


def outgoing(sender: Program, receiver: int) -> Outgoing:
    """Collect what `sender` packs for a rank of the other side, over all rounds."""
    dims = sender.fills["extent"].shape[1]
    parts = [_outgoing(item, receiver) for item in sender.rounds]
    nothing = [np.zeros(0, np.int64)]
    return Outgoing(
        join_batches([part.batch for part in parts], dims),
        np.concatenate([*nothing, *(part.values for part in parts)]),
        np.concatenate([*nothing, *(part.scales for part in parts)]),
    )


def _outgoing(item: RoundProgram, receiver: int) -> Outgoing:
    jobs = item.jobs
    values = np.where(jobs["target"] == SLOT, jobs["target_offset"], -1)
    scales = np.where(jobs["scale_target"] == SLOT, jobs["scale_offset"], -1)
    first, last = next(
        ((m.offset, m.offset + m.size) for m in item.messages if m.peer == receiver), (0, 0)
    )
    place = np.maximum(values, scales)
    index = np.flatnonzero((place >= first) & (place < last))
    rounds = np.full(len(jobs), item.number, np.int64)
    own = select_jobs(Batch(rounds, jobs, item.fragments), index)
    values, scales = values[index], scales[index]
    return Outgoing(
        own, np.where(values >= 0, values - first, -1), np.where(scales >= 0, scales - first, -1)
    )


def direct(receiver: Program, senders: Sequence[Program]) -> Direct:
    """Join the programs of a receiver and of all senders that send to it.

    Raises:
        ValueError: a message has parts that no sender packs.
    """
    dims = receiver.fills["extent"].shape[1]
    sent = [outgoing(sender, receiver.rank) for sender in senders]
    packed = _numbered(sent, senders, len(receiver.buffers), dims)
    arriving = _arriving(receiver, [sender.rank for sender in senders], dims)
    found = _Found(packed, arriving)
    scratch, before = _amaxes(found, dims)
    copied, entry, values, scales = _copied(found)
    batch = join_batches([copied, _transformed(found, scratch)], dims)
    nowhere = np.full(len(batch.jobs) - len(copied.jobs), -1, np.int64)
    return Direct(
        rank=receiver.rank,
        buffers=receiver.buffers,
        senders=tuple(sender.rank for sender in senders),
        sources=tuple(sender.buffers for sender in senders),
        outgoing=tuple(sent),
        unseen=_unseen(found, sent),
        before=before,
        batch=batch,
        entry=np.concatenate([entry, nowhere]),
        values=np.concatenate([values, nowhere]),
        scales=np.concatenate([scales, nowhere]),
        scratch_bytes=int(np.sum(align(found.amax_bytes))),
        fills=receiver.fills,
        derived=receiver.derived,
    )


@dataclass(frozen=True, slots=True)
class _Packed:
    """The jobs of all senders in one batch; sources are numbered after the receiver's buffers.

    `sender` `[jobs]` is the position of each job's sender, `group` its group there.
    """

    batch: Batch
    sender: IntArray
    group: IntArray
    values: IntArray
    scales: IntArray


def _numbered(
    sent: Sequence[Outgoing], senders: Sequence[Program], first: int, dims: int
) -> _Packed:
    batches: list[Batch] = []
    for part, sender in zip(sent, senders, strict=True):
        fragments = part.batch.fragments.copy()
        for name in ("source", "scale"):
            fragments[name] = np.where(
                fragments[name] >= 0, fragments[name] + first, fragments[name]
            )
        batches.append(Batch(part.batch.round, part.batch.jobs, fragments))
        first += len(sender.buffers)
    counts = [len(part.values) for part in sent]
    return _Packed(
        join_batches(batches, dims),
        np.repeat(np.arange(len(sent), dtype=np.int64), counts),
        _joined([part.group for part in sent]),
        _joined([part.values for part in sent]),
        _joined([part.scales for part in sent]),
    )


def _joined(parts: Sequence[IntArray]) -> IntArray:
    return np.concatenate([np.zeros(0, np.int64), *parts])


@dataclass(frozen=True, slots=True)
class _Arriving:
    """A receiver's jobs of all rounds; per fragment what it reads of a message, `[fragments]`.

    `job` is the fragment's job, `sender` the position of the sender, `offset` the byte of the
    message.
    """

    batch: Batch
    job: IntArray
    sender: IntArray
    offset: IntArray


def _arriving(receiver: Program, ranks: Sequence[int], dims: int) -> _Arriving:
    position = {rank: number for number, rank in enumerate(ranks)}
    if set(receiver.peers) - set(position):
        raise ValueError("a receiver waits for a message that no sender packs")
    batches: list[Batch] = []
    senders: list[IntArray] = []
    offsets: list[IntArray] = []
    for item in receiver.rounds:
        rounds = np.full(len(item.jobs), item.number, np.int64)
        # In the order of the jobs, and without fragments that no job reads.
        own = select_jobs(Batch(rounds, item.jobs, item.fragments), np.arange(len(item.jobs)))
        starts = np.array([message.offset for message in item.messages], np.int64)
        message = np.searchsorted(starts, own.fragments["offset"], side="right") - 1
        peers = np.array([position[m.peer] for m in item.messages], np.int64)
        batches.append(own)
        senders.append(peers[message])
        offsets.append(own.fragments["offset"] - starts[message])
    batch = join_batches(batches, dims)
    jobs = np.arange(len(batch.jobs))
    job = np.zeros(len(batch.fragments), np.int64)
    for kind in ("fragment", "amax"):
        count = batch.jobs[f"{kind}_count"]
        job[spans(batch.jobs[f"{kind}_first"], count)] = np.repeat(jobs, count)
    return _Arriving(batch, job, _joined(senders), _joined(offsets))


class _Found:
    """Which packed job wrote what each fragment of the receiver reads.

    `row` `[fragments]` is that job, and `is_scales` whether the fragment reads its scales.
    """

    def __init__(self, packed: _Packed, arriving: _Arriving) -> None:
        self.packed, self.arriving = packed, arriving
        rounds = arriving.batch.round[arriving.job]
        wanted = _key(rounds, arriving.sender, arriving.offset)
        owner, start = _last_part(packed, wanted)
        self.is_scales = packed.scales[owner] == start
        self.row = owner
        # Only of amaxes a fragment may read a part that does not begin with the payload.
        self.skipped = arriving.offset - start
        self.copies = arriving.batch.jobs["op"][arriving.job] == JobOp.COPY
        amax = self.is_scales & ~self.copies
        if np.any((self.skipped != 0) & ~amax):
            raise ValueError("a receiver waits for a part of a message that no sender packs")
        self.amax_rows = np.unique(self.row[amax])
        jobs = packed.batch.jobs[self.amax_rows]
        self.amax_bytes = np.prod(jobs["scale_counts"], axis=1) * ITEM_SIZES[jobs["scale_dtype"]]


_OFFSET_BITS = 38
_SENDER_BITS = 12
"""Messages of 256 GB, and senders, that one receiver can have."""


def _key(rounds: IntArray, sender: IntArray, offset: IntArray) -> IntArray:
    """Return numbers that order places by round, sender and byte of the message.

    Raises:
        ValueError: there are more of something than a number has room for.
    """
    limits = (
        (rounds, 63 - _SENDER_BITS - _OFFSET_BITS),
        (sender, _SENDER_BITS),
        (offset, _OFFSET_BITS),
    )
    if any(len(column) and int(column.max()) >> bits for column, bits in limits):
        raise ValueError("too many rounds or senders, or too large messages, to be mapped")
    return (((rounds << _SENDER_BITS) + sender) << _OFFSET_BITS) + offset


def _last_part(packed: _Packed, wanted: IntArray) -> tuple[IntArray, IntArray]:
    """Return for each place the packed job whose values or scales are the last to start there.

    With it comes the byte of the message at which they start.
    """
    places = np.concatenate([packed.values, packed.scales])
    index = np.flatnonzero(places >= 0)
    job = index % max(len(packed.values), 1)
    keys = _key(packed.batch.round[job], packed.sender[job], places[index])
    order = np.argsort(keys)
    found = np.searchsorted(keys[order], wanted, side="right") - 1
    if len(wanted) and (not len(keys) or found.min() < 0):
        raise ValueError("a receiver waits for a message that no sender packs")
    chosen = order[found]
    if np.any(keys[chosen] >> _OFFSET_BITS != wanted >> _OFFSET_BITS):
        raise ValueError("a receiver waits for a message that no sender packs")
    return job[chosen], places[index][chosen]


def _amaxes(found: _Found, dims: int) -> tuple[IntArray, Batch]:
    """Return where in the scratch each packed job writes its amaxes, and the jobs that do."""
    rows = found.amax_rows
    sizes = align(found.amax_bytes)
    place = np.full(len(found.packed.values), -1, np.int64)
    place[rows] = np.cumsum(sizes) - sizes
    batch = select_jobs(found.packed.batch, rows)
    batch.jobs["scale_offset"] = place[rows]
    return place, join_batches([batch], dims)


def _copied(found: _Found) -> tuple[Batch, IntArray, IntArray, IntArray]:
    """Return jobs that write what the receiver copies, and their digests and places."""
    arriving, packed = found.arriving, found.packed
    values = np.flatnonzero(found.copies & ~found.is_scales)
    rows = found.row[values]
    batch = select_jobs(packed.batch, rows)
    jobs, target = batch.jobs, arriving.batch.jobs[arriving.job[values]]
    _require_same(jobs["inner_extent"], target["extent"])
    for name in ("target", "target_offset", "target_strides"):
        jobs[name] = target[name]
    jobs["scale_target"] = NOWHERE
    position = np.full(len(packed.values), -1, np.int64)
    position[rows] = np.arange(len(rows))
    scales = np.flatnonzero(found.copies & found.is_scales)
    own = position[found.row[scales]]
    target = arriving.batch.jobs[arriving.job[scales]]
    _require_same(jobs["scale_counts"][own], target["extent"])
    for name in ("target", "offset", "strides"):
        jobs[f"scale_{name}"][own] = target["target" if name == "target" else f"target_{name}"]
    entry = packed.sender[rows] * GROUPS + packed.group[rows]
    return batch, entry, packed.values[rows], packed.scales[rows]


def _transformed(found: _Found, scratch: IntArray) -> Batch:
    """Return the receiver's jobs that make something else of what was sent."""
    arriving, packed = found.arriving, found.packed
    fragments = arriving.batch.fragments.copy()
    read = packed.batch.fragments[packed.batch.jobs["fragment_first"][found.row]]
    index = np.flatnonzero(~found.copies & ~found.is_scales)
    _require_same(read["extent"][index], fragments["extent"][index])
    for name in ("source", "dtype", "offset", "strides"):
        fragments[name][index] = read[name][index]
    for name in ("scale", "scale_dtype", "scale_offset", "scale_strides"):
        fragments[name][index] = read[name][index]
    for name in ("scale_block", "scale_phase"):
        fragments[name][index] = read[name][index]
    amax = np.flatnonzero(~found.copies & found.is_scales)
    fragments["offset"][amax] = scratch[found.row[amax]] + found.skipped[amax]
    batch = Batch(arriving.batch.round, arriving.batch.jobs, fragments)
    return select_jobs(batch, np.flatnonzero(arriving.batch.jobs["op"] != JobOp.COPY))


def _unseen(found: _Found, sent: Sequence[Outgoing]) -> tuple[IntArray, ...]:
    rows = np.unique(found.row[~found.copies])
    first = np.cumsum([0, *(len(part.values) for part in sent)])
    return tuple(
        rows[(rows >= low) & (rows < high)] - low for low, high in pairwise(first.tolist())
    )


def _require_same(mine: IntArray, other: IntArray) -> None:
    if not np.array_equal(mine, other):
        raise ValueError("the two ends of a message do not agree on its regions")

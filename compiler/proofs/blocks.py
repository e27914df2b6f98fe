"""Part of proofs 5 and 6: whoever quantizes sees every block whole, and all of it at once.

A block here is the logical one, clipped to the tensor. Regions are grown to whole blocks of the
receiver's grid and compared with boxes:

- At the sender, the grown region lies in the piece that is read.
- At the receiver, the moves of one round and window to one piece are a batch, quantized together.
  They make up a box. Its whole blocks lie in the piece, or amax edges of the same round to the same
  piece cover them. No two batches of a piece share a block.

That the moves themselves fill the piece is for `coverage.py` to show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.compiler.proofs.evidence import Evidence
from tranship.compiler.proofs.reading import Reading
from tranship.compiler.proofs.report import and_more, box_text, refuse
from tranship.compiler.proofs.writes import QUANTIZING, quantizes_at_receiver
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expression import IntArray
from tranship.schema.plan import Op, Place


@dataclass(frozen=True)
class Batch:
    """What reaches one receiver piece in one round and window.

    `start` to `end` is the smallest box around the regions, `volume` their number of elements;
    `low` to `high` is the box grown to whole blocks.
    """

    reading: Reading
    piece: int
    round: int
    start: IntArray
    end: IntArray
    low: IntArray
    high: IntArray
    volume: int


def whole_at_sender(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS646: a sender that quantizes a block of which it holds a part only."""
    edge = reading.edge
    if edge.op not in QUANTIZING or edge.place is Place.RECEIVER:
        return
    pieces, rows = evidence.sender.values, reading.sender_piece
    low, high = _grown(evidence, reading)
    start, end = pieces.start[rows], pieces.start[rows] + pieces.extent[rows]
    cut = np.flatnonzero(((low < start) | (high > end)).any(axis=1))
    if len(cut):
        row = int(cut[0])
        rank, name = int(reading.moves.sender.rank[row]), edge.sender.buffer
        message = f"'{name}' on sender rank {rank} holds only part of a block that it quantizes"
        yield refuse(
            "TS646",
            message + and_more(len(cut), "move"),
            reading.at,
            expected=box_text(low[row].tolist(), (high - low)[row].tolist()),
            found=box_text(start[row].tolist(), pieces.extent[rows][row].tolist()),
            help_text="quantize at the receiver",
        )


def _grown(evidence: Evidence, reading: Reading) -> tuple[IntArray, IntArray]:
    """First element, and the one after the last, of each region's whole blocks: `[n, dims]`."""
    origin = evidence.receiver.values.origin[reading.receiver_piece]
    block, dims = reading.block, reading.start.shape[1]
    shape = np.array([*reading.edge.shape, *(1,) * (dims - len(reading.edge.shape))])
    last = reading.start + (reading.extent - 1) * reading.step
    low = origin + (reading.start - origin) // block * block
    high = origin + ((last - origin) // block + 1) * block
    return np.maximum(low, 0), np.minimum(high, shape)


def batches(evidence: Evidence) -> tuple[Batch, ...]:
    """What is quantized at receivers."""
    found: dict[tuple[int, ...], Batch] = {}
    for reading in evidence.readings.edges:
        if quantizes_at_receiver(reading):
            for key, batch in _batches(evidence, reading):
                old = found.get(key)
                found[key] = batch if old is None else _together(old, batch)
    return tuple(found.values())


def _batches(evidence: Evidence, reading: Reading) -> Iterator[tuple[tuple[int, ...], Batch]]:
    """The batches that one edge has a part in, by piece, round and window."""
    fields = [reading.receiver_piece[:, None], reading.moves.round[:, None], reading.window]
    unique, first, group = np.unique(
        np.concatenate(fields, axis=1), axis=0, return_index=True, return_inverse=True
    )
    group = group.reshape(-1)
    low, high = _grown(evidence, reading)
    end = reading.start + reading.extent
    least, most = [part[first].copy() for part in (reading.start, low)], [end[first], high[first]]
    for bound, values in zip(least, (reading.start, low), strict=True):
        np.minimum.at(bound, group, values)
    for bound, values in zip(most, (end, high), strict=True):
        np.maximum.at(bound, group, values)
    volume = np.zeros(len(first), dtype=np.int64)
    np.add.at(volume, group, np.prod(reading.extent, axis=1))
    for number, key in enumerate(unique.tolist()):
        boxes = (least[0][number], most[0][number], least[1][number], most[1][number])
        yield tuple(key), Batch(reading, key[0], key[1], *boxes, volume=int(volume[number]))


def _together(first: Batch, second: Batch) -> Batch:
    return Batch(
        first.reading,
        first.piece,
        first.round,
        np.minimum(first.start, second.start),
        np.maximum(first.end, second.end),
        np.minimum(first.low, second.low),
        np.maximum(first.high, second.high),
        first.volume + second.volume,
    )


@dataclass(frozen=True)
class Bounds:
    """The amax regions that reach one receiver piece in one round: `start`, `end` `[n, dims]`."""

    readings: tuple[Reading, ...]
    start: IntArray
    end: IntArray


def bounds(evidence: Evidence) -> dict[tuple[int, int], Bounds]:
    """What amax edges bound, by piece and round."""
    found: dict[tuple[int, int], Bounds] = {}
    for reading in evidence.readings.edges:
        if reading.edge.op is Op.AMAX:
            keys = np.stack([reading.receiver_piece, reading.moves.round], axis=1)
            unique, group = np.unique(keys, axis=0, return_inverse=True)
            for number, (piece, round_) in enumerate(unique.tolist()):
                rows = np.flatnonzero(group.reshape(-1) == number)
                start, end = reading.start[rows], reading.start[rows] + reading.extent[rows]
                old = found.get((piece, round_))
                found[piece, round_] = Bounds(
                    (*old.readings, reading) if old else (reading,),
                    np.concatenate([old.start, start]) if old else start,
                    np.concatenate([old.end, end]) if old else end,
                )
    return found


def whole_at_receiver(evidence: Evidence) -> Iterator[Diagnostic]:
    """TS647: a receiver that quantizes a block of which it is not told all; one for each edge."""
    pieces, bounded = evidence.receiver.values, bounds(evidence)
    told: set[int] = set()
    for batch in batches(evidence):
        start, extent = pieces.start[batch.piece], pieces.extent[batch.piece]
        amax = bounded.get((batch.piece, batch.round))
        inside = bool(np.all((batch.low >= start) & (batch.high <= start + extent)))
        known = _covered(batch.low, batch.high, amax.start, amax.end) if amax else inside
        if known or batch.reading.number in told:
            continue
        told.add(batch.reading.number)
        what = f"{_target(evidence, batch)} quantizes blocks in round {batch.round}"
        yield refuse(
            "TS647",
            f"{what} of which it sees a part only",
            batch.reading.at,
            expected=box_text(batch.low.tolist(), (batch.high - batch.low).tolist()),
            found=f"the piece {box_text(start.tolist(), extent.tolist())}"
            + (f" and {len(amax.start)} amax regions" if amax else ""),
        )


def _covered(low: IntArray, high: IntArray, start: IntArray, end: IntArray) -> bool:
    """Whether boxes cover the box `low` to `high`, by cutting space at every face."""
    start, end = np.clip(start, low, high), np.clip(end, low, high)
    faces = [np.unique([low[d], high[d], *start[:, d], *end[:, d]]) for d in range(len(low))]
    filled = np.zeros([len(face) - 1 for face in faces], dtype=np.bool_)
    for first, last in zip(start, end, strict=True):
        ends = zip(faces, first, last, strict=True)
        filled[tuple(slice(*np.searchsorted(face, [a, b]).tolist()) for face, a, b in ends)] = True
    return bool(filled.all())


def _target(evidence: Evidence, batch: Batch) -> str:
    buffer = evidence.receiver.buffers[int(evidence.receiver.values.buffer[batch.piece])]
    return f"'{buffer.name}' on receiver rank {buffer.rank}"


def split_blocks(evidence: Evidence, quantized: Sequence[Batch]) -> Iterator[Diagnostic]:
    """TS651: batches that are no boxes, or that share a block; one for each edge."""
    members: dict[int, list[Batch]] = {}
    told: set[int] = set()
    for batch in quantized:
        others = members.setdefault(batch.piece, [])
        problem = _split(evidence, batch, others)
        others.append(batch)
        if problem is not None and batch.reading.number not in told:
            told.add(batch.reading.number)
            yield problem


def _split(evidence: Evidence, batch: Batch, others: Sequence[Batch]) -> Diagnostic | None:
    if batch.volume != int(np.prod(batch.end - batch.start)):
        message = f"what {_target(evidence, batch)} quantizes in round {batch.round} is no box"
        box = box_text(batch.start.tolist(), (batch.end - batch.start).tolist())
        found = f"{batch.volume} elements of it"
        return refuse("TS651", message, batch.reading.at, box, found)
    for other in others:
        if np.all((batch.low < other.high) & (other.low < batch.high)):
            message = f"a block of {_target(evidence, batch)} is quantized in parts"
            found = f"rounds {other.round} and {batch.round}"
            if other.round == batch.round:
                found = f"two windows in round {batch.round}"
            return refuse("TS651", message, batch.reading.at, "one round and window", found)
    return None


def lonely_bounds(evidence: Evidence, quantized: Sequence[Batch]) -> Iterator[Diagnostic]:
    """TS653: amax edges without a quantize edge of the same values, piece and round."""
    partners = {(batch.piece, batch.round): batch for batch in quantized}
    told: set[int] = set()
    for (piece, round_), amax in bounds(evidence).items():
        partner = partners.get((piece, round_))
        for reading in amax.readings:
            values = None if partner is None else _values(partner.reading)
            if reading.number in told or values == _values(reading):
                continue
            told.add(reading.number)
            buffer = evidence.receiver.buffers[int(evidence.receiver.values.buffer[piece])]
            message = (
                f"edge {reading.number} bounds blocks of '{buffer.name}' on receiver rank "
                f"{buffer.rank} that are not quantized from the same values in round {round_}"
            )
            yield refuse("TS653", message, reading.at, values or "none", _values(reading))


def _values(reading: Reading) -> str:
    """What an edge reads."""
    sender = reading.edge.sender
    return f"{sender.dtype} values" if sender.block is None else f"{sender.dtype} codes with scales"

"""Part of proofs 5 and 6: whoever quantizes sees every block whole, and all of it at once.

A block here is the logical one, clipped to the tensor. Regions are grown to whole blocks of the
receiver's grid and compared with boxes:

- At the sender, the grown region lies in the piece that is read.
- At the receiver, the moves of one round to one piece are taken together. The smallest box around
  their blocks lies in the piece; or amax edges of the same round to the same piece cover it. The
  boxes of two rounds share no block.

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

Key = tuple[int, int]
"""A receiver piece and a round."""


@dataclass(frozen=True)
class Batch:
    """What reaches one receiver piece in one round: the box `low` to `high` of its whole blocks."""

    reading: Reading
    low: IntArray
    high: IntArray


def whole_at_sender(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS646: a sender that quantizes a block of which it holds a part only."""
    edge = reading.edge
    if edge.op not in QUANTIZING or edge.place is not Place.SENDER:
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
    """First element, and the one after the last, of the whole blocks of each region: `[n, dims]`."""
    origin = evidence.receiver.values.origin[reading.receiver_piece]
    block, dims = reading.block, reading.start.shape[1]
    shape = np.array([*reading.edge.shape, *(1,) * (dims - len(reading.edge.shape))])
    last = reading.start + (reading.extent - 1) * reading.step
    low = origin + (reading.start - origin) // block * block
    high = origin + ((last - origin) // block + 1) * block
    return np.maximum(low, 0), np.minimum(high, shape)


def batches(evidence: Evidence) -> dict[Key, Batch]:
    """What is quantized at receivers, by piece and round."""
    found: dict[Key, Batch] = {}
    for reading in evidence.readings.edges:
        if quantizes_at_receiver(reading):
            low, high = _grown(evidence, reading)
            keys, first, group = _grouped(reading)
            lows, highs = low[first], high[first]
            np.minimum.at(lows, group, low)
            np.maximum.at(highs, group, high)
            for key, low_, high_ in zip(keys, lows, highs, strict=True):
                old = found.get(key)
                found[key] = Batch(
                    reading if old is None else old.reading,
                    low_ if old is None else np.minimum(low_, old.low),
                    high_ if old is None else np.maximum(high_, old.high),
                )
    return found


def _grouped(reading: Reading) -> tuple[list[Key], IntArray, IntArray]:
    """The keys of an edge's moves, a move of each, and the number of the key of every move."""
    rows = np.stack([reading.receiver_piece, reading.moves.round], axis=1)
    unique, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return [(piece, round_) for piece, round_ in unique.tolist()], first, group.reshape(-1)


@dataclass(frozen=True)
class Bounds:
    """The amax regions that reach one receiver piece in one round: `start`, `end` `[n, dims]`."""

    readings: tuple[Reading, ...]
    start: IntArray
    end: IntArray


def bounds(evidence: Evidence) -> dict[Key, Bounds]:
    """What amax edges bound, by piece and round."""
    found: dict[Key, Bounds] = {}
    for reading in evidence.readings.edges:
        if reading.edge.op is Op.AMAX:
            keys, _, group = _grouped(reading)
            for number, key in enumerate(keys):
                rows = np.flatnonzero(group == number)
                start, end = reading.start[rows], reading.start[rows] + reading.extent[rows]
                old = found.get(key)
                found[key] = Bounds(
                    (*old.readings, reading) if old else (reading,),
                    np.concatenate([old.start, start]) if old else start,
                    np.concatenate([old.end, end]) if old else end,
                )
    return found


def whole_at_receiver(evidence: Evidence) -> Iterator[Diagnostic]:
    """TS647: a receiver that quantizes a block of which it is not told all; one for each edge."""
    pieces, bounded = evidence.receiver.values, bounds(evidence)
    told: set[int] = set()
    for key, batch in batches(evidence).items():
        piece, round_ = key
        start, end = pieces.start[piece], pieces.start[piece] + pieces.extent[piece]
        amax = bounded.get(key)
        inside = bool(np.all((batch.low >= start) & (batch.high <= end)))
        if batch.reading.number in told or (inside and amax is None):
            continue
        if amax is not None and _covered(batch.low, batch.high, amax.start, amax.end):
            continue
        told.add(batch.reading.number)
        buffer = evidence.receiver.buffers[int(pieces.buffer[piece])]
        message = f"'{buffer.name}' on receiver rank {buffer.rank} quantizes blocks in round {round_}"
        yield refuse(
            "TS647",
            f"{message} that no amax edge covers",
            batch.reading.at,
            expected=f"all of {box_text(batch.low.tolist(), (batch.high - batch.low).tolist())}",
            found=f"the piece {box_text(start.tolist(), (end - start).tolist())}"
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


def split_blocks(evidence: Evidence) -> Iterator[Diagnostic]:
    """TS651: blocks of one receiver piece whose parts arrive in different rounds."""
    rounds: dict[int, list[tuple[int, Batch]]] = {}
    for (piece, round_), batch in batches(evidence).items():
        rounds.setdefault(piece, []).append((round_, batch))
    told: set[int] = set()
    for piece, members in rounds.items():
        pair = _sharing(members)
        if pair is not None and members[0][1].reading.number not in told:
            told.add(members[0][1].reading.number)
            buffer = evidence.receiver.buffers[int(evidence.receiver.values.buffer[piece])]
            message = f"a block of '{buffer.name}' on receiver rank {buffer.rank} is quantized in parts"
            place = members[0][1].reading.at
            yield refuse("TS651", message, place, "one round", f"rounds {pair[0]} and {pair[1]}")


def _sharing(members: Sequence[tuple[int, Batch]]) -> tuple[int, int] | None:
    """Two rounds whose boxes of whole blocks meet."""
    for number, (round_, batch) in enumerate(members):
        for other, before in members[:number]:
            if np.all((batch.low < before.high) & (before.low < batch.high)):
                return other, round_
    return None


def lonely_bounds(evidence: Evidence) -> Iterator[Diagnostic]:
    """TS653: amax edges without a quantize edge of the same values, piece and round."""
    quantized = batches(evidence)
    told: set[int] = set()
    for key, amax in bounds(evidence).items():
        partner = quantized.get(key)
        for reading in amax.readings:
            if reading.number in told:
                continue
            piece, round_ = key
            buffer = evidence.receiver.buffers[int(evidence.receiver.values.buffer[piece])]
            where = f"'{buffer.name}' on receiver rank {buffer.rank}"
            if partner is None:
                told.add(reading.number)
                message = f"nothing is quantized into {where} in round {round_} of its amax"
                yield refuse("TS653", message, reading.at)
            elif _values(reading) != _values(partner.reading):
                told.add(reading.number)
                message = f"the amax for {where} is not of the values that are quantized"
                found = _values(reading)
                yield refuse("TS653", message, reading.at, _values(partner.reading), found)


def _values(reading: Reading) -> str:
    """What an edge reads."""
    sender = reading.edge.sender
    return f"{sender.dtype} values" if sender.block is None else f"{sender.dtype} codes with scales"

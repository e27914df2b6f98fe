"""Everything that a plan writes into receiver buffers, as regions owned by buffer numbers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tranship.compiler.proofs.evidence import Evidence
from tranship.compiler.proofs.reading import Reading
from tranship.compiler.proofs.report import at
from tranship.compiler.proofs.tiling import Regions, regions
from tranship.schema.diagnostics import Location
from tranship.schema.plan import Op, Place
from tranship.schema.wire import payload

QUANTIZING = (Op.QUANTIZE, Op.REQUANTIZE)


@dataclass(frozen=True)
class Write:
    """What one edge or fill writes."""

    at: Location
    memory: Regions


def writes(evidence: Evidence) -> Iterator[Write]:
    """Yield the writes of all edges and fills; an edge's values and scales apart."""
    quantized: set[int] = set()
    for reading in evidence.readings.edges:
        if reading.edge.op is not Op.AMAX:
            yield Write(reading.at, _values(evidence, reading))
        if quantizes_at_receiver(reading):
            yield Write(reading.at, _computed_scales(reading, quantized))
        elif reading.edge.op is not Op.AMAX and reading.edge.receiver.scale is not None:
            yield Write(reading.at, _sent_scales(reading))
    for fill in evidence.readings.fills:
        yield Write(at(f"/fills/{fill.number}"), fill.memory)


def quantizes_at_receiver(reading: Reading) -> bool:
    """Whether the receiver computes the scales of an edge."""
    edge = reading.edge
    return (
        edge.op in QUANTIZING and edge.place is Place.RECEIVER and edge.receiver.scale is not None
    )


def _values(evidence: Evidence, reading: Reading) -> Regions:
    """The moved regions, at the addresses of the declared pieces."""
    pieces, rows = evidence.receiver.values, reading.receiver_piece
    skipped = (reading.start - pieces.start[rows]) // pieces.step[rows]
    strides = pieces.strides[rows]
    return regions(
        pieces.buffer[rows],
        pieces.offset[rows] + (skipped * strides).sum(axis=1),
        reading.extent,
        strides * (reading.step // pieces.step[rows]),
    )


def _sent_scales(reading: Reading) -> Regions:
    """The blocks whose scales travel with the moves."""
    sent = payload(reading.edge, reading.moves)
    scale = reading.moves.receiver.scale
    assert scale is not None, "the edge writes scales"
    offset = scale.offset + ((sent.blocks - scale.start) * scale.strides).sum(axis=1)
    owner = reading.receiver.scale_buffer[reading.receiver_row]
    return regions(owner, offset, sent.block_counts, scale.strides)


def _computed_scales(reading: Reading, done: set[int]) -> Regions:
    """All blocks of every receiver piece that no edge before has reached; adds them to `done`."""
    pieces, move = np.unique(reading.receiver_piece, return_index=True)
    fresh = [n for n, piece in enumerate(pieces.tolist()) if piece not in done]
    done.update(pieces.tolist())
    row = reading.receiver_row[move[fresh]]
    instances = reading.receiver.instances.take(row)
    scale, box = instances.scale, instances.box
    assert scale is not None, "a quantizing edge writes scales"
    block = reading.block[: box.start.shape[1]]
    first = (box.start - instances.origin) // block
    last = (box.start + box.extent - 1 - instances.origin) // block
    offset = scale.offset + ((first - scale.start) * scale.strides).sum(axis=1)
    return regions(reading.receiver.scale_buffer[row], offset, last - first + 1, scale.strides)

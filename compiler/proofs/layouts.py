"""Part of proof 5: bytes go only where they keep their meaning under the layouts of both sides.

Packed scales are declared as they are before they are packed, so that row-major ones can be written
there, but not read. What other layouts do to memory is not known here. A copy keeps its bytes in
place if it moves a whole piece into a whole piece with the same strides, and the layouts are equal.
Everything else needs row-major values and scales.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tranship.compiler.proofs.declared import Declared, distinct
from tranship.compiler.proofs.evidence import Evidence
from tranship.compiler.proofs.reading import Reading
from tranship.compiler.proofs.report import and_more, refuse
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expression import IntArray
from tranship.schema.layouts import PACKED_SCALES, ROW_MAJOR
from tranship.schema.plan import Op

Names = NDArray[np.str_]
Mask = NDArray[np.bool_]


def check_layouts(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS644: layouts that differ, are computed on, or are copied in parts."""
    for what, sent, wanted, keeps in _moved(evidence, reading):
        good = (sent == ROW_MAJOR) & (wanted == ROW_MAJOR)
        good |= (sent == wanted) & (wanted != PACKED_SCALES) & keeps
        if what == "scales":
            good |= (sent == ROW_MAJOR) & (wanted == PACKED_SCALES)
        wrong = np.flatnonzero(~good)
        if len(wrong):
            row = int(wrong[0])
            name, rank = reading.edge.receiver.buffer, int(reading.moves.receiver.rank[row])
            message = f"{what} for '{name}' on receiver rank {rank} cannot be moved in this layout"
            yield refuse(
                "TS644",
                message + and_more(len(wrong), "move"),
                reading.at,
                expected=f"{ROW_MAJOR}, or {PACKED_SCALES} for scales that arrive; equal layouts "
                "where whole pieces of equal strides are copied",
                found=f"{sent[row]} to {wanted[row]}" if sent[row] != wanted[row] else sent[row],
            )


def _moved(evidence: Evidence, reading: Reading) -> Iterator[tuple[str, Names, Names, Mask]]:
    """For values and for scales: both layouts of every move, and whether bytes stay in place."""
    edge, sender, receiver = reading.edge, evidence.sender, evidence.receiver
    sent = _layouts(sender, reading.sender.buffer[reading.sender_row])
    wanted = _layouts(receiver, reading.receiver.buffer[reading.receiver_row])
    computed = np.zeros(len(sent), dtype=np.bool_)
    whole = _whole(evidence, reading) if edge.op is Op.COPY else computed
    yield "values", sent, wanted, whole & _equal_strides(evidence, reading)
    read, written = len(reading.sender.scale_buffer) > 0, len(reading.receiver.scale_buffer) > 0
    sent = wanted = np.full(len(sent), ROW_MAJOR)
    if read:
        sent = _layouts(sender, reading.sender.scale_buffer[reading.sender_row])
    if written:
        wanted = _layouts(receiver, reading.receiver.scale_buffer[reading.receiver_row])
    copied = edge.op is Op.COPY and read and written
    yield "scales", sent, wanted, whole & _equal_scale_strides(reading) if copied else computed


def _layouts(known: Declared, numbers: IntArray) -> Names:
    names = {number: known.buffers[number].layout for number in distinct(numbers)}
    return np.array([names[int(number)] for number in numbers], dtype=np.str_)


def _whole(evidence: Evidence, reading: Reading) -> Mask:
    """Whether each move takes all of a piece to all of a piece."""
    whole = np.ones(len(reading.start), dtype=np.bool_)
    for pieces, rows in (
        (evidence.sender.values, reading.sender_piece),
        (evidence.receiver.values, reading.receiver_piece),
    ):
        whole &= (reading.start == pieces.start[rows]).all(axis=1)
        whole &= (reading.extent == pieces.extent[rows]).all(axis=1)
    return whole


def _equal_strides(evidence: Evidence, reading: Reading) -> Mask:
    sent = evidence.sender.values.strides[reading.sender_piece]
    wanted = evidence.receiver.values.strides[reading.receiver_piece]
    return ((reading.extent == 1) | (sent == wanted)).all(axis=1)


def _equal_scale_strides(reading: Reading) -> Mask:
    sent, wanted = reading.moves.sender.scale, reading.moves.receiver.scale
    assert sent is not None, "asked of copies with scales"
    assert wanted is not None, "asked of copies with scales"
    return (sent.strides == wanted.strides).all(axis=1)

"""Part of proof 5: bytes go only where they keep their meaning under the layouts of both sides.

What a layout other than row-major does to memory is not known here. A copy keeps its bytes in place
if it moves a whole piece into a whole piece with the same strides, and the layouts are equal.
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
from tranship.schema.plan import Op

ROW_MAJOR = "row_major"

Names = NDArray[np.str_]
Mask = NDArray[np.bool_]


def check_layouts(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS644: layouts that differ, are computed on, or are copied in parts."""
    for what, sent, wanted, keeps in _moved(evidence, reading):
        wrong = np.flatnonzero((sent != wanted) | ((wanted != ROW_MAJOR) & ~keeps))
        if len(wrong):
            row = int(wrong[0])
            name, rank = reading.edge.receiver.buffer, int(reading.moves.receiver.rank[row])
            message = f"{what} for '{name}' on receiver rank {rank} cannot be moved in this layout"
            yield refuse(
                "TS644",
                message + and_more(len(wrong), "move"),
                reading.at,
                expected="equal layouts, row_major unless whole pieces of equal strides are copied",
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
    scales = [
        (known, end.scale_buffer[rows])
        for known, end, rows in (
            (sender, reading.sender, reading.sender_row),
            (receiver, reading.receiver, reading.receiver_row),
        )
        if len(end.scale_buffer)
    ]
    layouts = [_layouts(known, numbers) for known, numbers in scales]
    if edge.op is Op.COPY and len(layouts) == 2:
        yield "scales", layouts[0], layouts[1], whole & _equal_scale_strides(reading)
    else:
        yield from (("scales", names, names, computed) for names in layouts)


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

"""Part of proof 5: codes and scales are copied only between grids that are the same.

A copied scale keeps its number in the block grid and its bytes. So blocks and grid origins must be
equal, the scale dtypes too, and the receiver must accept all values that the sender's may have.
"""

from collections.abc import Iterator

import numpy as np

from tranship.compiler.proofs.declared import distinct
from tranship.compiler.proofs.evidence import Evidence
from tranship.compiler.proofs.reading import Reading
from tranship.compiler.proofs.report import and_more, refuse
from tranship.schema.boxes import resolve_block
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.dtypes import DType
from tranship.schema.plan import Edge, Op


def check_passthrough(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS645: codes that are copied although their scales do not mean the same on both sides."""
    edge = reading.edge
    if edge.op is not Op.COPY or edge.receiver.block is None:
        return
    found = next(_obstacles(evidence, reading), None)
    if found is not None:
        what, sent, wanted = found
        message = f"edge {reading.number} copies scales between different {what}"
        yield refuse("TS645", message, reading.at, f"{wanted} (receiver)", f"{sent} (sender)")


def _obstacles(evidence: Evidence, reading: Reading) -> Iterator[tuple[str, object, object]]:
    """What differs: its name, the sender's and the receiver's."""
    edge = reading.edge
    sent, wanted = _blocks(edge)
    if sent != wanted:
        yield "blocks", sent, wanted
    assert edge.sender.scale, "both ends of the copy are scaled"
    assert edge.receiver.scale, "both ends of the copy are scaled"
    if edge.sender.scale.dtype != edge.receiver.scale.dtype:
        yield "scale dtypes", edge.sender.scale.dtype, edge.receiver.scale.dtype
    first = evidence.sender.values.origin[reading.sender_piece]
    second = evidence.receiver.values.origin[reading.receiver_piece]
    wrong = np.flatnonzero((first != second).any(axis=1))
    if len(wrong):
        row, more = int(wrong[0]), and_more(len(wrong), "move")
        yield f"origins{more}", first[row].tolist(), second[row].tolist()
    powers = edge.sender.scale.dtype is DType.F8E8M0FNU
    accepted = _scale_values(evidence, reading)
    if "power_of_two" in accepted[1] and "any" in accepted[0] and not powers:
        yield "scale values", "any", "power_of_two"


def _blocks(edge: Edge) -> tuple[list[int], list[int]]:
    assert edge.sender.block, "both ends of the copy are scaled"
    assert edge.receiver.block, "both ends of the copy are scaled"
    sent = resolve_block(edge.sender.block, edge.shape)
    return list(sent), list(resolve_block(edge.receiver.block, edge.shape))


def _scale_values(evidence: Evidence, reading: Reading) -> tuple[set[str], set[str]]:
    """Which scale values the buffers of the two sides may hold."""
    found = [
        {known.buffers[number].encoding.scale_values for number in distinct(numbers)}
        for known, numbers in (
            (evidence.sender, reading.sender.buffer[reading.sender_row]),
            (evidence.receiver, reading.receiver.buffer[reading.receiver_row]),
        )
    ]
    return found[0], found[1]

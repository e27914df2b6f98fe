"""Part of proof 1: what the halves and fills of a plan claim is what the manifests declare.

A half at one index assignment on one rank is a row: buffer, tensor, offset, start, extent, step,
strides, origin. `reading.py` has looked the row up among the declared ones. Left to compare are the
dtype, the shape and the encoding; the scale maps are compared in `scale_maps.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tranship.compiler.proofs.declared import Declared, distinct
from tranship.compiler.proofs.evidence import Evidence
from tranship.compiler.proofs.lookup import positions
from tranship.compiler.proofs.reading import End, FillReading, Reading
from tranship.compiler.proofs.report import and_more, at, at_edge, refuse
from tranship.compiler.proofs.scale_maps import check_scales
from tranship.compiler.proofs.tiling import Regions
from tranship.schema.boxes import resolve_block
from tranship.schema.diagnostics import Diagnostic, Location
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Side
from tranship.schema.plan import Half
from tranship.schema.records import BufferRecord, Ints, PieceRecord


@dataclass(frozen=True)
class _Claim:
    """One half of an edge, and the declaration that it must agree with."""

    side: Side
    tensor: str
    shape: Ints
    half: Half
    end: End
    known: Declared
    edge: Location
    at: Location


def check_halves(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """Yield TS603, TS604, TS605 and TS608 for one edge."""
    for claim in _claims(evidence, reading):
        found = list(_tensors(claim)) or list(_pieces(claim)) or list(_encodings(claim))
        yield from found or check_scales(
            claim.side, claim.half, claim.shape, claim.end, claim.known, claim.at
        )


def _claims(evidence: Evidence, reading: Reading) -> Iterator[_Claim]:
    edge, number = reading.edge, reading.number
    yield _Claim(
        Side.SENDER,
        edge.source or edge.tensor,
        edge.shape,
        edge.sender,
        reading.sender,
        evidence.sender,
        reading.at,
        at_edge(number, "/sender"),
    )
    yield _Claim(
        Side.RECEIVER,
        edge.tensor,
        edge.shape,
        edge.receiver,
        reading.receiver,
        evidence.receiver,
        reading.at,
        at_edge(number, "/receiver"),
    )


def _tensors(claim: _Claim) -> Iterator[Diagnostic]:
    if np.any(claim.end.tensor < 0):
        message = f"the {claim.side} declares no '{claim.tensor}' for some index of the edge"
        yield refuse("TS608", message, claim.edge)
        return
    for number in distinct(claim.end.tensor):
        tensor = claim.known.tensors[number]
        if tensor.shape != claim.shape:
            message = f"the edge gives '{tensor.name}' another shape than the {claim.side}"
            yield refuse("TS608", message, claim.edge, list(tensor.shape), list(claim.shape))
            return


def _pieces(claim: _Claim) -> Iterator[Diagnostic]:
    wrong = np.flatnonzero(claim.end.piece < 0)
    if len(wrong):
        message, expected, found = _difference(claim, int(wrong[0]))
        more = and_more(len(wrong), "instance")
        yield refuse("TS603", message + more, claim.at, expected, found)


def _difference(claim: _Claim, row: int) -> tuple[str, str | None, str | None]:
    """Say what is not declared about an instance: message, expected, found."""
    where = f"{claim.side} rank {int(claim.end.instances.rank[row])}"
    name, number = claim.end.names[row], int(claim.end.buffer[row])
    if number < 0:
        return f"{where} declares no buffer '{name}'", None, None
    buffer, tensor = claim.known.buffers[number], claim.known.tensors[int(claim.end.tensor[row])]
    if buffer.role.kind != "transfer":
        return f"'{name}' on {where} does not take part", "transfer", buffer.role.kind
    own = [piece for piece in buffer.pieces if piece.tensor == tensor.name]
    if not own:
        return f"'{name}' on {where} holds no piece of '{tensor.name}'", None, None
    message = f"'{name}' on {where} has no such piece of '{tensor.name}'"
    return message, *_closest(claim.end, row, own)


def _closest(end: End, row: int, own: list[PieceRecord]) -> tuple[str, str]:
    """The fields in which an instance differs from the declared piece most like it."""
    instances = end.instances
    claimed: dict[str, object] = {
        "start": tuple(instances.box.start[row].tolist()),
        "extent": tuple(instances.box.extent[row].tolist()),
        "step": instances.box.step,
        "offset": int(instances.offset[row]),
        "strides": tuple(instances.strides[row].tolist()),
        "origin": tuple(instances.origin[row].tolist()),
    }

    def differing(piece: PieceRecord) -> list[str]:
        return [field for field, value in claimed.items() if getattr(piece, field) != value]

    piece = min(own, key=lambda piece: len(differing(piece)))
    fields = differing(piece)
    if not fields:
        return f"part {piece.part}", "part value"
    expected = ", ".join(f"{field} {_plain(getattr(piece, field))}" for field in fields)
    return expected, ", ".join(f"{field} {_plain(claimed[field])}" for field in fields)


def _plain(value: object) -> str:
    return str(value).replace("(", "[").replace(",)", "]").replace(")", "]")


def _encodings(claim: _Claim) -> Iterator[Diagnostic]:
    for number in distinct(claim.end.buffer):
        buffer = claim.known.buffers[number]
        for field, expected, found in _encoding(claim, buffer):
            message = f"the {field} of '{buffer.name}' is not what the {claim.side} declares"
            yield refuse("TS604", message, claim.at, expected, found)
            return


def _encoding(claim: _Claim, buffer: BufferRecord) -> Iterator[tuple[str, object, object]]:
    half, encoding = claim.half, buffer.encoding
    if half.dtype != buffer.dtype:
        yield "dtype", buffer.dtype, half.dtype
    scaled = encoding.kind == "scaled"
    expected = list(resolve_block(encoding.block, claim.shape)) if scaled else "none"
    stated = list(resolve_block(half.block, claim.shape)) if half.block is not None else "none"
    if expected != stated:
        yield "block", expected, stated
    if scaled != (half.scale is not None):
        yield "scale buffer", encoding.scale or "none", half.scale.buffer if half.scale else "none"


def check_fills(evidence: Evidence) -> Iterator[Diagnostic]:
    """Yield TS607 for fills that are not declared."""
    known = evidence.receiver
    rows = _fill_rows(known.fills.memory, known.fills.value)
    for reading in evidence.readings.fills:
        value = np.full(len(reading.memory.owner), reading.edge.value, dtype=np.int64)
        found = positions(*_equal_width(_fill_rows(reading.memory, value), rows))
        wrong = np.flatnonzero((reading.memory.owner < 0) | (found < 0))
        if len(wrong):
            yield _undeclared_fill(reading, wrong)
            continue
        for number in distinct(reading.memory.owner):
            buffer = known.buffers[number]
            if buffer.dtype != reading.edge.dtype:
                message = f"the dtype of '{buffer.name}' is not what the receiver declares"
                place = at(f"/fills/{reading.number}/dtype")
                yield refuse("TS607", message, place, buffer.dtype, reading.edge.dtype)
                break


def _fill_rows(memory: Regions, value: IntArray) -> IntArray:
    """Fills as rows; dims of size 1 say nothing."""
    strides = np.where(memory.sizes == 1, 0, memory.strides)
    ends = np.stack([memory.owner, memory.offset, value], axis=1)
    pairs = np.stack([memory.sizes, strides], axis=2).reshape(len(value), 2 * strides.shape[1])
    return np.concatenate([ends, pairs], axis=1)


def _equal_width(first: IntArray, second: IntArray) -> tuple[IntArray, IntArray]:
    """Pad rows of fills with dims of size 1 and stride 0."""
    columns = max(first.shape[1], second.shape[1])
    padding = np.array([1, 0] * columns, dtype=np.int64)

    def widened(rows: IntArray) -> IntArray:
        more = np.tile(padding[: columns - rows.shape[1]], (len(rows), 1))
        return np.concatenate([rows, more], axis=1)

    return widened(first), widened(second)


def _undeclared_fill(reading: FillReading, wrong: IntArray) -> Diagnostic:
    row = int(wrong[0])
    rank, name = reading.names[row]
    memory, value = reading.memory, reading.edge.value
    message = f"'{name}' on receiver rank {rank} declares no such fill"
    return refuse(
        "TS607",
        message + and_more(len(wrong), "instance"),
        at(f"/fills/{reading.number}"),
        found=f"{value} at offset {int(memory.offset[row])}, sizes {memory.sizes[row].tolist()}, "
        f"strides {memory.strides[row].tolist()}",
    )

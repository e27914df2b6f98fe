"""Proof 5: every edge does what its encodings need, by rules that the policy allows.

Axioms: the declared encodings and layouts, the policy, the options.

- The op fits the dtypes and encodings: a copy joins equal ones, a cast plain floating point ones,
  and so on (`_ENCODINGS`). Dequantizing, requantizing and casts that may round are allowed by a
  line of the policy that names the receiver's family and both dtypes.
- A formula is there exactly where something is quantized: powers of two where the receiver takes no
  other scales, else the one that the options ask for.
- A transform runs where it can: casts that may round and dequantization at the sender, casts that
  cannot round at the receiver, quantization on either side if blocks are whole there (`blocks.py`).
- Scales are copied only between equal grids of equal blocks, with equal scale dtype and layout, and
  if the receiver accepts whatever values the sender's scales may have.
- Layouts are equal, and row-major unless a piece is copied whole between equal strides.
- Boxes have no steps where a side is scaled. A scaled piece is written in one way only.
"""

from collections.abc import Iterator

import numpy as np

from tranship.compiler.proofs.blocks import whole_at_receiver, whole_at_sender
from tranship.compiler.proofs.declared import distinct
from tranship.compiler.proofs.evidence import Case, Evidence
from tranship.compiler.proofs.families import families, matches, spellings
from tranship.compiler.proofs.layouts import check_layouts
from tranship.compiler.proofs.passthrough import check_passthrough
from tranship.compiler.proofs.reading import Reading
from tranship.compiler.proofs.report import at_edge, refuse
from tranship.compiler.proofs.writes import QUANTIZING
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.dtypes import CODE_DTYPES, SCALE_DTYPES, DType, is_float, widens
from tranship.schema.formulas import FORMULAS
from tranship.schema.plan import Edge, Half, Op, Place

_ENCODINGS: dict[Op, frozenset[tuple[bool, bool]]] = {
    Op.COPY: frozenset({(False, False), (True, True)}),
    Op.CAST: frozenset({(False, False)}),
    Op.QUANTIZE: frozenset({(False, True)}),
    Op.DEQUANTIZE: frozenset({(True, False)}),
    Op.REQUANTIZE: frozenset({(True, True)}),
    Op.AMAX: frozenset({(False, True), (True, True)}),
}
"""For every op, whether sender and receiver are scaled."""


def prove_edge_types(case: Case) -> Iterator[Diagnostic]:
    """Yield TS640 to TS649."""
    for evidence in case.units:
        yield from _typed(evidence)


def _typed(evidence: Evidence) -> Iterator[Diagnostic]:
    for reading in evidence.readings.edges:
        misfit = list(_operation(reading))
        yield from misfit
        if misfit:
            continue
        yield from _policy(evidence, reading)
        yield from _formula(evidence, reading)
        yield from _place(reading)
        yield from check_layouts(evidence, reading)
        yield from check_passthrough(evidence, reading)
        yield from _steps(evidence, reading)
        yield from whole_at_sender(evidence, reading)
    yield from whole_at_receiver(evidence)
    yield from _one_way(evidence)


def _operation(reading: Reading) -> Iterator[Diagnostic]:
    """TS640: an op that does not join these encodings or dtypes."""
    edge = reading.edge
    scaled = edge.sender.block is not None, edge.receiver.block is not None
    if scaled not in _ENCODINGS[edge.op] or not _dtypes_fit(edge):
        message = f"{edge.op} does not lead from {_held(edge.sender)} to {_held(edge.receiver)}"
        yield refuse("TS640", message, at_edge(reading.number, "/op"))


def _held(half: Half) -> str:
    scales = f" with {half.scale.dtype} scales" if half.scale else ""
    return f"{half.dtype}{scales}"


def _dtypes_fit(edge: Edge) -> bool:
    sender, receiver = edge.sender.dtype, edge.receiver.dtype
    readable = _is_coded(edge.sender) if edge.sender.block else _is_exact(sender)
    match edge.op:
        case Op.COPY:
            return sender == receiver
        case Op.CAST:
            return sender != receiver and is_float(sender) and is_float(receiver)
        case Op.DEQUANTIZE:
            return readable and is_float(receiver) and receiver not in CODE_DTYPES
        case _:
            return readable and _is_coded(edge.receiver)


def _is_coded(half: Half) -> bool:
    return half.dtype in CODE_DTYPES and bool(half.scale and half.scale.dtype in SCALE_DTYPES)


def _is_exact(dtype: DType) -> bool:
    """Whether float32, in which all formulas compute, holds every value."""
    return widens(dtype, DType.F32) and dtype not in CODE_DTYPES


def _is_lossless(edge: Edge) -> bool:
    """Whether a cast cannot round; codes without scales are not taken for values."""
    sender = edge.sender.dtype
    return widens(sender, edge.receiver.dtype) and sender not in CODE_DTYPES


def _policy(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS641: a lossy edge that no line of the policy allows."""
    edge = reading.edge
    if edge.op not in (Op.CAST, Op.DEQUANTIZE, Op.REQUANTIZE):
        return
    if edge.op is Op.CAST and _is_lossless(edge):
        return
    known = evidence.receiver.tensors
    names = {known[number].name for number in distinct(reading.receiver.tensor)}
    dtypes = (edge.sender.dtype, edge.receiver.dtype)
    patterns = [
        line.tensors
        for line in (evidence.policy.allow if evidence.policy else ())
        if line.edge == edge.op and (line.sender_dtype, line.receiver_dtype) == dtypes
    ]
    for texts in set(families(evidence.receiver_manifest, names).values()):
        spelled = spellings(evidence.receiver_manifest, texts)
        if not any(matches(name, pattern) for name in spelled for pattern in patterns):
            message = f"the policy does not allow to {edge.op} '{spelled[0]}' from {dtypes[0]}"
            yield refuse("TS641", f"{message} to {dtypes[1]}", reading.at)


def _formula(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS642: a formula that is missing, idle, or not the one that is asked for."""
    edge = reading.edge
    place = at_edge(reading.number, "/formula")
    if edge.op not in QUANTIZING:
        if edge.formula is not None:
            yield refuse("TS642", f"{edge.op} has no formula", place, "none", edge.formula)
        return
    if edge.formula is None or edge.formula not in FORMULAS:
        message = f"edge {reading.number} quantizes by no known formula"
        yield refuse("TS642", message, place, ", ".join(FORMULAS), edge.formula or "none")
        return
    known, scales = evidence.receiver.buffers, edge.receiver.scale
    accepted = {known[n].encoding.scale_values for n in distinct(reading.receiver.buffer)}
    exponents = scales is not None and scales.dtype is DType.F8E8M0FNU
    powers = exponents or "power_of_two" in accepted
    free = not exponents and accepted != {"power_of_two"}
    if powers and not FORMULAS[edge.formula].power_of_two:
        message = "the receiver takes powers of two only as scales"
        yield refuse("TS642", message, place, "power_of_two", edge.formula)
    elif free and evidence.options and edge.formula != evidence.options.formula:
        message = "the options ask for another formula"
        yield refuse("TS642", message, place, evidence.options.formula, edge.formula)


def _place(reading: Reading) -> Iterator[Diagnostic]:
    """TS643: a transform on the side where it cannot or should not run."""
    edge = reading.edge
    if edge.op in QUANTIZING:
        return
    late = edge.op is Op.CAST and _is_lossless(edge)
    expected = Place.RECEIVER if late else Place.SENDER
    if edge.place is not expected:
        message = f"{edge.op} does not run at the {edge.place}"
        yield refuse("TS643", message, at_edge(reading.number, "/place"), expected, edge.place)


def _steps(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS648: boxes that skip elements where blocks are read or made."""
    edge = reading.edge
    if edge.sender.block is None and edge.receiver.block is None:
        return
    for name, pieces, rows in (
        ("sender", evidence.sender.values, reading.sender.piece),
        ("receiver", evidence.receiver.values, reading.receiver.piece),
    ):
        if np.any((pieces.step[rows] != 1) & (pieces.extent[rows] > 1)):
            message = f"the {name}'s boxes of edge {reading.number} skip elements of blocks"
            yield refuse("TS648", message, at_edge(reading.number, f"/{name}/step"))


def _one_way(evidence: Evidence) -> Iterator[Diagnostic]:
    """TS649: a scaled piece into which edges write by different ops, places or formulas."""
    ways: dict[int, Reading] = {}
    for reading in evidence.readings.edges:
        edge = reading.edge
        if edge.receiver.block is None or edge.op is Op.AMAX:
            continue
        for piece in distinct(reading.receiver_piece):
            first = ways.setdefault(piece, reading)
            if _way(first.edge) != _way(edge):
                number = int(evidence.receiver.values.buffer[piece])
                buffer = evidence.receiver.buffers[number]
                message = f"'{buffer.name}' on receiver rank {buffer.rank} is made in two ways"
                yield refuse("TS649", message, reading.at, _way(first.edge), _way(edge))
                break


def _way(edge: Edge) -> str:
    by = f" by {edge.formula}" if edge.formula else ""
    return f"{edge.op}{by} at the {edge.place}"

"""Pass 2: give every match the typed edge that its two encodings ask for."""

from collections.abc import Callable, Iterable
from typing import Literal

from tranship.compiler.inputs import Inputs, buffer_layout, name_matches
from tranship.compiler.match import Match
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Label
from tranship.schema.dtypes import CODE_DTYPES, DType, is_float, widens
from tranship.schema.formulas import FormulaName
from tranship.schema.layouts import LAYOUTS, ROW_MAJOR
from tranship.schema.manifest import Scaled
from tranship.schema.plan import Edge, Op, Place

QUANTIZABLE = frozenset({DType.BF16, DType.F16, DType.F32})
"""Types whose every value the formulas, which compute in float32, take as it is."""

Lossy = Literal["cast", "dequantize", "requantize"]


def encode(inputs: Inputs, matches: Iterable[Match]) -> tuple[Edge, ...]:
    """Type every match as an edge.

    Raises:
        DiagnosticError: TS401 dtypes without a conversion, TS402 a lossy edge that the policy does
            not allow, TS403 layouts that differ and cannot be converted.
    """
    problems: list[Diagnostic] = []
    edges = [_edge(inputs, found, problems.append) for found in matches]
    if problems:
        raise DiagnosticError(problems)
    return tuple(edges)


def _edge(inputs: Inputs, found: Match, report: Callable[[Diagnostic], None]) -> Edge:
    op, place = _operation(inputs, found, report)
    _check_layouts(inputs, found, op, report)
    formula = _formula(inputs, found) if op in (Op.QUANTIZE, Op.REQUANTIZE) else None
    return Edge(
        op=op,
        place=place,
        formula=formula,
        tensor=found.tensor,
        source=found.source,
        indices=found.indices,
        shape=found.shape,
        sender=found.sender.half,
        receiver=found.receiver.half,
    )


def _operation(
    inputs: Inputs, found: Match, report: Callable[[Diagnostic], None]
) -> tuple[Op, Place]:
    sender, receiver = found.sender.buffer, found.receiver.buffer
    match isinstance(sender.encoding, Scaled), isinstance(receiver.encoding, Scaled):
        case False, False:
            return _plain_to_plain(inputs, found, report)
        case False, True:
            if sender.dtype not in QUANTIZABLE:
                report(_no_conversion(inputs, found))
            return Op.QUANTIZE, Place.SENDER
        case True, False:
            if not is_float(receiver.dtype) or receiver.dtype in CODE_DTYPES:
                report(_no_conversion(inputs, found))
            else:
                _need(inputs, found, "dequantize", report)
            return Op.DEQUANTIZE, Place.SENDER
        case _:
            reason = passthrough_obstacle(found)
            if reason is None:
                return Op.COPY, Place.SENDER
            _need(inputs, found, "requantize", report, reason)
            return Op.REQUANTIZE, Place.SENDER


def _plain_to_plain(
    inputs: Inputs, found: Match, report: Callable[[Diagnostic], None]
) -> tuple[Op, Place]:
    sender, receiver = found.sender.buffer.dtype, found.receiver.buffer.dtype
    if sender == receiver:
        return Op.COPY, Place.SENDER
    if not (is_float(sender) and is_float(receiver)):
        report(_no_conversion(inputs, found))
        return Op.CAST, Place.SENDER
    if widens(sender, receiver) and sender not in CODE_DTYPES:
        return Op.CAST, Place.RECEIVER
    _need(inputs, found, "cast", report)
    return Op.CAST, Place.SENDER


def passthrough_obstacle(found: Match) -> str | None:
    """Why a scaled sender's bytes cannot go to a scaled receiver as they are; None if they can.

    The origins of the two grids are compared by the next pass, which knows them in numbers.
    """
    sender, receiver = found.sender, found.receiver
    first, second = sender.buffer.encoding, receiver.buffer.encoding
    assert isinstance(first, Scaled)
    assert isinstance(second, Scaled)
    assert sender.half.scale is not None
    assert receiver.half.scale is not None
    if sender.buffer.dtype != receiver.buffer.dtype:
        return f"codes are {sender.buffer.dtype} and {receiver.buffer.dtype}"
    if first.block != second.block:
        return f"blocks are {list(first.block)} and {list(second.block)}"
    if sender.half.scale.dtype != receiver.half.scale.dtype:
        return f"scales are {sender.half.scale.dtype} and {receiver.half.scale.dtype}"
    if second.scale_values == "power_of_two" and first.scale_values == "any":
        return "the receiver takes powers of two as scales, the sender's are any"
    return None


def _formula(inputs: Inputs, found: Match) -> FormulaName:
    encoding = found.receiver.buffer.encoding
    scale = found.receiver.half.scale
    assert isinstance(encoding, Scaled)
    assert scale is not None
    if encoding.scale_values == "power_of_two" or scale.dtype is DType.F8E8M0FNU:
        return "power_of_two"
    return inputs.options.formula


def allowed(inputs: Inputs, edge: Lossy, tensor: str, sender: DType, receiver: DType) -> bool:
    """Whether a line of the policy allows this lossy edge by name."""
    lines = inputs.policy.allow if inputs.policy else ()
    return any(
        line.edge == edge
        and line.sender_dtype == sender
        and line.receiver_dtype == receiver
        and name_matches(tensor, line.tensors)
        for line in lines
    )


def _need(
    inputs: Inputs,
    found: Match,
    edge: Lossy,
    report: Callable[[Diagnostic], None],
    reason: str | None = None,
) -> None:
    """Report TS402 unless the policy allows the edge."""
    sender, receiver = found.sender.buffer.dtype, found.receiver.buffer.dtype
    if allowed(inputs, edge, found.tensor, sender, receiver):
        return
    because = f" ({reason})" if reason else ""
    report(
        Diagnostic(
            code="TS402",
            message=f"{found.tensor} would be {_PAST[edge]} from {sender} to {receiver}{because}",
            at=inputs.at("receiver", found.receiver.pointer),
            expected=f"a policy line that allows {edge}, or encodings that fit",
            found="no such line",
            labels=(Label(inputs.at("sender", found.sender.pointer), f"{sender} here"),),
            help="allow it by name in the policy, or change what one side holds",
            suggestion=(
                f'{{"edge": "{edge}", "tensors": "{found.tensor}", "sender_dtype": "{sender}", '
                f'"receiver_dtype": "{receiver}", "reason": "..."}}'
            ),
        )
    )


_PAST: dict[Lossy, str] = {
    "cast": "narrowed",
    "dequantize": "dequantized",
    "requantize": "requantized",
}


def _no_conversion(inputs: Inputs, found: Match) -> Diagnostic:
    sender, receiver = found.sender.buffer, found.receiver.buffer
    return Diagnostic(
        code="TS401",
        message=f"no edge turns {found.tensor} from {sender.dtype} into {receiver.dtype}",
        at=inputs.at("receiver", found.receiver.pointer),
        expected=f"{sender.encoding.kind} {sender.dtype}, as the sender holds it",
        found=f"{receiver.encoding.kind} {receiver.dtype}",
        labels=(Label(inputs.at("sender", found.sender.pointer), "held here"),),
        help="only floating point types convert; make both sides hold the same type",
    )


def _check_layouts(
    inputs: Inputs, found: Match, op: Op, report: Callable[[Diagnostic], None]
) -> None:
    pairs = [(found.sender.buffer.layout, found.receiver.buffer.layout, found.tensor)]
    theirs, ours = found.sender.half.scale, found.receiver.half.scale
    if theirs is not None or ours is not None:
        held = buffer_layout(inputs.sender, theirs.buffer) if theirs else ROW_MAJOR
        wanted = buffer_layout(inputs.receiver, ours.buffer) if ours else ROW_MAJOR
        pairs.append((held, wanted, f"the scales of {found.tensor}"))
    for sender, receiver, what in pairs:
        written = sender == ROW_MAJOR and LAYOUTS[receiver].known
        copied = sender == receiver and not LAYOUTS[receiver].known and op is Op.COPY
        if not (written or copied):
            report(_wrong_layout(inputs, found, op, sender, receiver, what))


def _wrong_layout(
    inputs: Inputs, found: Match, op: Op, sender: str, receiver: str, what: str
) -> Diagnostic:
    own = found.receiver.buffer.name
    return Diagnostic(
        code="TS403",
        message=f"{own} holds {what} in layout {receiver}, and the sender in {sender}",
        at=inputs.at("receiver", found.receiver.pointer),
        expected=_expected_layouts(op, receiver),
        found=f"{sender} to {receiver}",
        labels=(Label(inputs.at("sender", found.sender.pointer), f"layout {sender}"),),
        help="have the sender hold the checkpoint layout: kernel layouts are not read"
        if LAYOUTS[receiver].known
        else "have the engine hold the checkpoint layout, and derive the kernel layout from it "
        "with its own recipe after the update",
    )


def _expected_layouts(op: Op, receiver: str) -> str:
    if LAYOUTS[receiver].known:
        return f"{ROW_MAJOR} at the sender"
    return "equal layouts" if op is Op.COPY else f"{ROW_MAJOR} on both sides to {op}"

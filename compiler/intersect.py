"""Pass 3: cut the boxes of both sides with each other, and decide where blocks are quantized."""

from collections.abc import Sequence

import numpy as np

from tranship.compiler.inputs import Inputs, buffer_layout
from tranship.compiler.tiling import Group, groups, receiver_pointer, tiling
from tranship.schema.boxes import contains, grow_to_cells
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.layouts import ROW_MAJOR
from tranship.schema.moves import Moves, edge_block
from tranship.schema.plan import Edge, Op, Place


def intersect(inputs: Inputs, edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """Keep the sender pieces that are needed, check that they tile, and place the quantization.

    Raises:
        DiagnosticError: TS301 elements that no sender piece holds, TS302 sender pieces that overlap
            and cannot be told apart, TS303 pieces of a scaled tensor that skip elements, TS304
            grids of blocks that start at different elements.
    """
    problems: list[Diagnostic] = []
    result: list[Edge] = []
    for group in groups(edges):
        kept, moves, complaint = tiling(inputs, group)
        if complaint is not None:
            problems.append(complaint)
            continue
        misfit = _grid_problem(inputs, kept, moves) or _layout_problem(inputs, kept, moves)
        if misfit is not None:
            problems.append(misfit)
            continue
        result.extend(_placed(inputs, group, kept, moves))
    if problems:
        raise DiagnosticError(problems)
    return tuple(result)


def _grid_problem(
    inputs: Inputs, edges: Sequence[Edge], moves: Sequence[Moves]
) -> Diagnostic | None:
    """TS303 for scaled pieces that skip elements, TS304 for copies between different grids."""
    for edge, part in zip(edges, moves, strict=True):
        if edge_block(edge) is None:
            continue
        if any(step != 1 for step in (*part.sender.box.step, *part.receiver.box.step)):
            return _misfit(
                inputs, edge, "TS303", "its pieces skip elements", "pieces without steps"
            )
        both = edge.sender.block is not None and edge.op is Op.COPY
        if both and not np.array_equal(part.sender.origin, part.receiver.origin):
            return _misfit(
                inputs, edge, "TS304", "the two grids start at different elements", "equal origins"
            )
    return None


def _layout_problem(
    inputs: Inputs, edges: Sequence[Edge], moves: Sequence[Moves]
) -> Diagnostic | None:
    """TS403 for parts of an opaque layout: only whole pieces of equal strides can be copied."""
    for edge, part in zip(edges, moves, strict=True):
        layout = buffer_layout(inputs.receiver, edge.receiver.buffer)
        volume = part.region.volume
        whole = np.array_equal(volume, part.sender.box.volume) and np.array_equal(
            volume, part.receiver.box.volume
        )
        alike = np.array_equal(part.sender.strides, part.receiver.strides)
        if layout != ROW_MAJOR and not (whole and alike):
            return Diagnostic(
                code="TS403",
                message=f"{edge.tensor} cannot be cut in layout {layout}",
                at=inputs.at("receiver", receiver_pointer(inputs, edge.receiver)),
                expected="the same whole pieces with the same strides on both sides",
                found="pieces that differ",
                help="have both sides hold the checkpoint layout, and derive the kernel's from it",
            )
    return None


def _misfit(inputs: Inputs, edge: Edge, code: str, what: str, expected: str) -> Diagnostic:
    return Diagnostic(
        code=code,
        message=f"the blocks of {edge.tensor} do not fit: {what}",
        at=inputs.at("receiver", receiver_pointer(inputs, edge.receiver)),
        expected=expected,
        found=f"sender buffer {edge.sender.buffer}, receiver buffer {edge.receiver.buffer}",
        help="declare the grid as the software that made it counts blocks",
    )


def _placed(
    inputs: Inputs, group: Group, edges: Sequence[Edge], moves: Sequence[Moves]
) -> tuple[Edge, ...]:
    """Quantize where a block is whole: at the sender if every move's is, else at the receiver.

    Codes are half as many bytes on the wire as the values they stand for, so that the sender is
    the better place wherever both are possible. Where neither side sees a block whole, amax edges
    tell the receiver what it cannot see; their sender pieces may be others than those that fill
    the receiver's box.
    """
    if edges[0].op not in (Op.QUANTIZE, Op.REQUANTIZE):
        return tuple(edges)
    if all(_whole_at_sender(edge, part) for edge, part in zip(edges, moves, strict=True)):
        return tuple(edges)
    late = tuple(edge.model_copy(update={"place": Place.RECEIVER}) for edge in edges)
    if all(_whole_at_receiver(edge, part) for edge, part in zip(edges, moves, strict=True)):
        return late
    bounding = {"op": Op.AMAX, "place": Place.SENDER, "formula": None}
    bounds = tuple(edge.model_copy(update=bounding) for edge in group.edges)
    kept, _, complaint = tiling(inputs, Group(group.receiver, group.tensor, bounds))
    if complaint is not None:
        raise DiagnosticError([complaint])
    return (*kept, *late)


def _whole_at_sender(edge: Edge, moves: Moves) -> bool:
    block = edge_block(edge)
    assert block is not None
    grown = grow_to_cells(moves.region, moves.receiver.origin, block, edge.shape)
    return bool(np.all(contains(moves.sender.box, grown)))


def _whole_at_receiver(edge: Edge, moves: Moves) -> bool:
    block = edge_block(edge)
    assert block is not None
    grown = grow_to_cells(moves.receiver.box, moves.receiver.origin, block, edge.shape)
    return bool(np.all(contains(moves.receiver.box, grown)))

"""The plan as arrays: its edges, fills and steps on every rank, each with what it claims to be.

What an edge means is in `schema/moves.py`. Here every instance of its halves is looked up in the
declaration; later proofs then speak of declared pieces, whatever the plan says of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tranship.compiler.proofs.declared import Declared, Pieces, column
from tranship.compiler.proofs.lookup import names_of, padded, positions
from tranship.compiler.proofs.report import at, at_edge, refuse
from tranship.compiler.proofs.tiling import Regions, regions
from tranship.compiler.proofs.units import Unit
from tranship.schema.boxes import resolve_block
from tranship.schema.diagnostics import Diagnostic, Location
from tranship.schema.dtypes import DType
from tranship.schema.expression import IntArray, evaluate, parse
from tranship.schema.manifest import Side
from tranship.schema.mesh import RANK, table_arrays
from tranship.schema.moves import (
    Instances,
    Moves,
    edge_block,
    edge_moves,
    grid_size,
    half_instances,
    index_grid,
)
from tranship.schema.plan import (
    DerivedStep,
    Edge,
    FillEdge,
    Half,
    Op,
    PlanSide,
)

MAX_ROWS = 2**28
"""Most instances or pairs of one edge that are looked at; a larger plan is refused."""

Item = TypeVar("Item")
T = TypeVar("T")


class UnreadableError(ValueError):
    """A part of a plan that has no meaning."""


@dataclass(frozen=True)
class End:
    """One half's instances: the numbers of the buffer, tensor and piece that each is; -1 for none.

    `names` and `scale_names` (empty without scales) are the buffers that the plan names.
    """

    instances: Instances
    names: list[str]
    buffer: IntArray
    tensor: IntArray
    piece: IntArray
    scale_names: list[str]
    scale_buffer: IntArray


@dataclass(frozen=True)
class Reading:
    """One edge: its two ends, and its moves with the rows of the ends that they join.

    `start`, `extent` and `step` `[n, dims]` are the moved regions, padded as pieces are; `window`
    `[n, 2 * dims]` is the start and extent of the edge's window, or zeros.
    """

    number: int
    edge: Edge
    sender: End
    receiver: End
    moves: Moves
    sender_row: IntArray
    receiver_row: IntArray
    start: IntArray
    extent: IntArray
    step: IntArray
    window: IntArray

    @property
    def at(self) -> Location:
        """The edge's place in the plan."""
        return at_edge(self.number)

    @property
    def sender_piece(self) -> IntArray:
        """The declared piece that each move reads."""
        return self.sender.piece[self.sender_row]

    @property
    def receiver_piece(self) -> IntArray:
        """The declared piece that each move writes."""
        return self.receiver.piece[self.receiver_row]

    @property
    def block(self) -> IntArray:
        """The block in elements, padded with 1 to `[dims]`; of edges that have one."""
        block = edge_block(self.edge)
        assert block is not None, "asked of edges with a scaled end"
        return padded(np.array([block], dtype=np.int64), self.start.shape[1], 1)[0]


@dataclass(frozen=True)
class FillReading:
    """One fill of the plan on every rank: `memory` is owned by buffer numbers, -1 for none."""

    number: int
    edge: FillEdge
    memory: Regions
    names: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class StepReading:
    """One derived step: for every instance, rank and buffer name, and the names of its inputs."""

    number: int
    step: DerivedStep
    names: tuple[tuple[int, str], ...]
    inputs: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Readings:
    """All that could be read of a plan, and why the rest could not."""

    edges: tuple[Reading, ...]
    fills: tuple[FillReading, ...]
    steps: tuple[StepReading, ...]
    unreadable: tuple[Diagnostic, ...]


def read(unit: Unit, sender: Declared, receiver: Declared) -> Readings:
    """Read every edge, fill and step of a unit."""
    plan = unit.plan
    problems = [_unreadable(f"/edges/{number}", why) for number, why in unit.broken.items()]
    edges = _attempt(
        [(n, plan.edges[n]) for n in unit.edges],
        "/edges",
        lambda n, edge: _edge(unit, n, edge, sender, receiver),
        problems,
    )
    ranks = unit.ranks[Side.RECEIVER]
    fills = _attempt(
        [(n, plan.fills[n]) for n in unit.fills],
        "/fills",
        lambda n, edge: _fill(plan.receiver, ranks, n, edge, receiver),
        problems,
    )
    steps = _attempt(
        [(n, plan.derived[n]) for n in unit.steps],
        "/derived",
        lambda n, step: _step(plan.receiver, ranks, n, step),
        problems,
    )
    return Readings(edges, fills, steps, tuple(problems))


def _attempt(
    items: Iterable[tuple[int, Item]],
    pointer: str,
    reader: Callable[[int, Item], T],
    problems: list[Diagnostic],
) -> tuple[T, ...]:
    """Read items one by one; what goes wrong with one becomes a diagnostic."""
    found: list[T] = []
    for number, item in items:
        try:
            found.append(reader(number, item))
        except (ValueError, KeyError, OverflowError) as error:
            reason = f"unknown axis {error}" if isinstance(error, KeyError) else str(error)
            problems.append(_unreadable(f"{pointer}/{number}", reason))
    return tuple(found)


def _unreadable(place: str, reason: str) -> Diagnostic:
    return refuse("TS602", f"{place} cannot be read: {reason}", at(place))


def _edge(unit: Unit, number: int, edge: Edge, sender: Declared, receiver: Declared) -> Reading:
    _require_dims(edge)
    plan, senders, receivers = unit.plan, unit.ranks[Side.SENDER], unit.ranks[Side.RECEIVER]
    names = _tensor_names(edge.tensor, edge.indices)
    sources = _tensor_names(edge.source or edge.tensor, edge.indices)
    source = _end(edge.sender, edge.indices, plan.sender, senders, sender, sources)
    target = _end(edge.receiver, edge.indices, plan.receiver, receivers, receiver, names)
    _require_pairs(source.instances.point, target.instances.point)
    moves = edge_moves(plan, number, receivers, senders)
    dims = receiver.values.start.shape[1]
    steps = np.tile(np.array(moves.region.step, dtype=np.int64), (len(moves.round), 1))
    return Reading(
        number=number,
        edge=edge,
        sender=source,
        receiver=target,
        moves=moves,
        sender_row=_rows(moves.sender, source.instances),
        receiver_row=_rows(moves.receiver, target.instances),
        start=padded(moves.region.start, dims, 0),
        extent=padded(moves.region.extent, dims, 1),
        step=padded(steps, dims, 1),
        window=padded(_windows(edge, moves, plan.receiver), 2 * dims, 0),
    )


def _windows(edge: Edge, moves: Moves, side: PlanSide) -> IntArray:
    window = (*edge.window.start, *edge.window.extent) if edge.window else ()
    found = np.zeros((len(moves.round), len(window)), dtype=np.int64)
    for place, entry in enumerate(window):
        environment, lookup = moves.receiver.environment, table_arrays(side.tables)
        found[:, place] = evaluate(parse(entry), environment, lookup)
    return found


def _require_dims(edge: Edge) -> None:
    """Refuse an edge whose parts differ in their number of dims, or that lacks a block."""
    dims = len(edge.shape)
    for name, half in (("sender", edge.sender), ("receiver", edge.receiver)):
        parts = [half.start, half.extent, half.strides, half.step, half.origin, half.block]
        if half.scale is not None:
            parts += [half.scale.start, half.scale.extent, half.scale.strides]
        if any(part is not None and len(part) != dims for part in parts):
            raise UnreadableError(f"the {name}'s box has not the {dims} dims of the shape")
        if half.block:
            resolve_block(half.block, edge.shape)
    if edge.window and not len(edge.window.start) == len(edge.window.extent) == dims:
        raise UnreadableError(f"the window has not the {dims} dims of the shape")
    blocked = edge.op is Op.AMAX or edge.receiver.scale is not None
    if blocked and edge_block(edge) is None:
        raise UnreadableError("it has scales and no block")


def _require_pairs(senders: IntArray, receivers: IntArray) -> None:
    points = int(max(senders.max(initial=-1), receivers.max(initial=-1))) + 1
    count = np.bincount(senders, minlength=points) * np.bincount(receivers, minlength=points)
    if int(count.sum()) > MAX_ROWS:
        raise UnreadableError(f"it joins more than {MAX_ROWS} pairs of pieces")


def _tensor_names(text: str, indices: Mapping[str, str]) -> list[str]:
    """The tensor at every assignment of `indices`."""
    count = grid_size(indices)
    if count > MAX_ROWS:
        raise UnreadableError(f"its indices have more than {MAX_ROWS} assignments")
    return names_of(text, index_grid(indices), {}, count)


def _instances(
    half: Half, indices: Mapping[str, str], side: PlanSide, ranks: IntArray
) -> Instances:
    names = Counter([*indices, *half.indices, *(axis.name for axis in side.axes), RANK])
    if names.total() > len(names):
        raise UnreadableError(f"{names.most_common(1)[0][0]!r} names two things")
    if grid_size(indices) * grid_size(half.indices) * len(ranks) > MAX_ROWS:
        raise UnreadableError(f"it has more than {MAX_ROWS} possible instances")
    return half_instances(half, indices, side, ranks)


def _end(
    half: Half,
    indices: Mapping[str, str],
    side: PlanSide,
    ranks: IntArray,
    known: Declared,
    tensors: list[str],
) -> End:
    instances = _instances(half, indices, side, ranks)
    names, buffer = _buffers(half.buffer, instances, side, known)
    tensor = column(known.tensor_number.get(name, -1) for name in tensors)[instances.point]
    claimed = _claimed(instances, buffer, tensor, known.values.start.shape[1])
    piece = positions(claimed.rows, known.values.rows)
    piece = np.where((buffer < 0) | (tensor < 0), -1, piece)
    scale_names, scale_buffer = (
        _buffers(half.scale.buffer, instances, side, known) if half.scale else ([], column([]))
    )
    return End(instances, names, buffer, tensor, piece, scale_names, scale_buffer)


def _buffers(
    template: str, instances: Instances, side: PlanSide, known: Declared
) -> tuple[list[str], IntArray]:
    """The name of a buffer at every instance, and its number in the declaration."""
    count = len(instances.rank)
    names = names_of(template, instances.environment, table_arrays(side.tables), count)
    places = zip(instances.rank.tolist(), names, strict=True)
    return names, column(known.buffer_number.get(place, -1) for place in places)


def _claimed(instances: Instances, buffer: IntArray, tensor: IntArray, dims: int) -> Pieces:
    """The instances as pieces."""
    count = len(buffer)
    own = instances.box.start.shape[1]
    if own > dims:
        raise UnreadableError(f"no declared tensor has {own} dims")
    step = np.tile(np.array(instances.box.step, dtype=np.int64), (count, 1))
    return Pieces(
        buffer=buffer,
        tensor=tensor,
        offset=instances.offset,
        start=padded(instances.box.start, dims, 0),
        extent=padded(instances.box.extent, dims, 1),
        step=padded(step, dims, 1),
        strides=padded(instances.strides, dims, 0),
        origin=padded(instances.origin, dims, 0),
    )


def _rows(moved: Instances, instances: Instances) -> IntArray:
    """The rows of `instances` that the rows of `moved` are."""

    def keys(part: Instances) -> IntArray:
        points = int(instances.point.max(initial=0)) + 1
        extras = int(instances.extra.max(initial=0)) + 1
        return (part.rank * points + part.point) * extras + part.extra

    known = keys(instances)
    order = np.argsort(known)
    return order[np.searchsorted(known[order], keys(moved))]


def _fill(
    side: PlanSide, ranks: IntArray, number: int, fill: FillEdge, known: Declared
) -> FillReading:
    if len(fill.sizes) != len(fill.strides):
        raise UnreadableError("its sizes and strides differ in dims")
    half = Half(
        buffer=fill.buffer,
        dtype=fill.dtype,
        indices=fill.indices,
        at=fill.at,
        start=(0,) * len(fill.sizes),
        extent=fill.sizes,
        offset=fill.offset,
        strides=fill.strides,
    )
    instances = _instances(half, {}, side, ranks)
    names, buffer = _buffers(fill.buffer, instances, side, known)
    places = tuple(zip(instances.rank.tolist(), names, strict=True))
    memory = regions(buffer, instances.offset, instances.box.extent, instances.strides)
    return FillReading(number, fill, memory, places)


def _step(side: PlanSide, ranks: IntArray, number: int, step: DerivedStep) -> StepReading:
    half = Half(
        buffer=step.buffer,
        dtype=DType.U8,  # only where the step exists matters: a box without dims
        indices=step.indices,
        at=step.at,
        start=(),
        extent=(),
        offset=0,
        strides=(),
    )
    instances = _instances(half, {}, side, ranks)
    count, lookup = len(instances.rank), table_arrays(side.tables)
    names = names_of(step.buffer, instances.environment, lookup, count)
    inputs = [names_of(name, instances.environment, lookup, count) for name in step.inputs]
    places = tuple(zip(instances.rank.tolist(), names, strict=True))
    rows = zip(*inputs, strict=True) if inputs else iter([()] * count)
    return StepReading(number, step, places, tuple(rows))

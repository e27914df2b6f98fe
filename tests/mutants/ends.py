"""The two ends of every move, one by one and in plain integers, for the interpreter."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.mutants.memory import Cells, Site
from tranship.schema.boxes import resolve_block
from tranship.schema.dtypes import DType
from tranship.schema.expression import evaluate, parse
from tranship.schema.manifest import IntExpression
from tranship.schema.mesh import table_arrays
from tranship.schema.moves import Instances, Moves, edge_block, half_instances
from tranship.schema.plan import DerivedStep, Edge, FillEdge, Half, PlanSide, TransferPlan
from tranship.schema.records import Ints
from tranship.schema.template import fill_template, parse_template


@dataclass(frozen=True)
class Scales:
    """Where the scales of an end lie, by block."""

    place: Site
    start: Ints
    offset: int
    strides: Ints

    def address(self, blocks: Cells) -> Cells:
        """The address of each block `[n, d]`."""
        steps = (blocks - np.array(self.start, dtype=np.int64)) * np.array(self.strides)
        return self.offset + steps.sum(axis=1, dtype=np.int64)


@dataclass(frozen=True)
class End:
    """One end of a move: its box, where that lies, and its grid of blocks."""

    place: Site
    start: Ints
    extent: Ints
    step: Ints
    offset: int
    strides: Ints
    origin: Ints
    block: Ints
    scale: Scales | None
    window: Ints

    def address(self, elements: Cells) -> Cells:
        """The address of each logical element `[n, d]`."""
        position = (elements - np.array(self.start, dtype=np.int64)) // np.array(self.step)
        steps = position * np.array(self.strides, dtype=np.int64)
        return self.offset + steps.sum(axis=1, dtype=np.int64)

    def blocks(self, elements: Cells) -> Cells:
        """The block of each logical element `[n, d]`."""
        return (elements - np.array(self.origin, dtype=np.int64)) // np.array(self.block)


Region = tuple[Ints, Ints, Ints]
"""Start, extent and step of a box."""


def ends_of(plan: TransferPlan, edge: Edge, moves: Moves) -> Iterator[tuple[End, End, Region]]:
    """Sender's end, receiver's end and region of every move."""
    own = resolve_block(edge.sender.block, edge.shape) if edge.sender.block else None
    common = edge_block(edge) or (1,) * len(edge.shape)
    senders = _ends(edge, edge.sender, plan.sender, moves.sender, own or common)
    receivers = _ends(edge, edge.receiver, plan.receiver, moves.receiver, common)
    rows = zip(moves.region.start.tolist(), moves.region.extent.tolist(), strict=True)
    for sender, receiver, (start, extent) in zip(senders, receivers, rows, strict=True):
        yield sender, receiver, (tuple(start), tuple(extent), moves.region.step)


def _ends(edge: Edge, half: Half, side: PlanSide, rows: Instances, block: Ints) -> Iterator[End]:
    names = names_of(half.buffer, side, rows)
    scale_names = names_of(half.scale.buffer, side, rows) if half.scale else names
    for row, rank in enumerate(rows.rank.tolist()):
        scale = None
        if rows.scale is not None:
            scale = Scales(
                (rank, scale_names[row]),
                tuple(rows.scale.start[row].tolist()),
                int(rows.scale.offset[row]),
                tuple(rows.scale.strides[row].tolist()),
            )
        yield End(
            (rank, names[row]),
            tuple(rows.box.start[row].tolist()),
            tuple(rows.box.extent[row].tolist()),
            rows.box.step,
            int(rows.offset[row]),
            tuple(rows.strides[row].tolist()),
            tuple(rows.origin[row].tolist()),
            block,
            scale,
            _window(edge, side, rows, row),
        )


def names_of(text: str, side: PlanSide, rows: Instances) -> list[str]:
    """A name's template, filled in for every row."""
    template, lookup = parse_template(text), table_arrays(side.tables)
    columns = {name: values.tolist() for name, values in rows.environment.items()}
    return [
        fill_template(template, {name: values[row] for name, values in columns.items()}, lookup)
        for row in range(len(rows.rank))
    ]


def _window(edge: Edge, side: PlanSide, rows: Instances, row: int) -> Ints:
    if edge.window is None:
        return ()
    environment = {name: int(values[row]) for name, values in rows.environment.items()}
    lookup = table_arrays(side.tables)
    entries = (*edge.window.start, *edge.window.extent)
    return tuple(int(evaluate(parse(entry), environment, lookup)) for entry in entries)


def fill_places(side: PlanSide, fill: FillEdge) -> Iterator[tuple[Site, int, Ints, Ints]]:
    """Every place of a fill: buffer, offset, sizes and strides."""
    half = _half(fill.buffer, fill, fill.sizes, fill.strides, fill.offset)
    found = half_instances(half, {}, side)
    for row, (rank, name) in enumerate(
        zip(found.rank.tolist(), names_of(fill.buffer, side, found), strict=True)
    ):
        sizes, strides = found.box.extent[row].tolist(), found.strides[row].tolist()
        yield (rank, name), int(found.offset[row]), tuple(sizes), tuple(strides)


def step_places(side: PlanSide, step: DerivedStep) -> Iterator[tuple[Site, tuple[str, ...]]]:
    """Every place of a derived step: its buffer, and the names of its inputs."""
    found = half_instances(_half(step.buffer, step), {}, side)
    names = [names_of(text, side, found) for text in (step.buffer, *step.inputs)]
    for rank, name, *inputs in zip(found.rank.tolist(), *names, strict=True):
        yield (rank, name), tuple(inputs)


def _half(
    buffer: str,
    item: FillEdge | DerivedStep,
    sizes: tuple[IntExpression, ...] = (),
    strides: tuple[IntExpression, ...] = (),
    offset: IntExpression = 0,
) -> Half:
    """A half that exists where a fill or a step does."""
    return Half(
        buffer=buffer,
        dtype=DType.U8,
        indices=item.indices,
        at=item.at,
        start=(0,) * len(sizes),
        extent=sizes,
        offset=offset,
        strides=strides,
    )

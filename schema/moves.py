"""What a plan means: the moves of its edges, rank by rank, as arrays.

A move takes one region of one logical tensor from one sender rank to one receiver rank. The
runtime turns moves into programs, the scheduler counts their bytes, and the verifier compares
them with the manifests; all three read the plan through this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from tranship.schema import indexset
from tranship.schema.boxes import Boxes, grow_to_cells, intersect, resolve_block
from tranship.schema.expression import IntArray, Value, evaluate, parse
from tranship.schema.manifest import Axis, IntExpression
from tranship.schema.mesh import RANK, coordinates, table_arrays
from tranship.schema.plan import Edge, Half, Op, PlanSide, ScaleHalf, TransferPlan
from tranship.schema.records import Ints
from tranship.schema.rows import join_sorted, number_rows, repeat_runs

Environment = dict[str, IntArray]


@dataclass(frozen=True, slots=True)
class ScaleMap:
    """Where scales lie: `start` and `extent` in blocks, `strides` `[n, d]`, and `offset` `[n]`."""

    start: IntArray
    extent: IntArray
    offset: IntArray
    strides: IntArray

    def take(self, index: IntArray) -> "ScaleMap":
        """The rows at positions `index`."""
        return ScaleMap(
            self.start[index], self.extent[index], self.offset[index], self.strides[index]
        )


@dataclass(frozen=True, slots=True)
class Instances:
    """Every place where one half of an edge exists: `n` rows.

    `point` numbers the edge's own index assignments, `extra` those of the half's own indices,
    `rank` is the rank. Element `k` of the box lies at `offset + sum(k * strides)`. `origin`
    `[n, d]` is the block grid's. `environment` holds every index, axis and the rank, `[n]` each.
    """

    point: IntArray
    extra: IntArray
    rank: IntArray
    box: Boxes
    offset: IntArray
    strides: IntArray
    origin: IntArray
    scale: ScaleMap | None
    environment: Environment

    def take(self, index: IntArray) -> "Instances":
        """The rows at positions `index`."""
        return Instances(
            self.point[index],
            self.extra[index],
            self.rank[index],
            self.box.take(index),
            self.offset[index],
            self.strides[index],
            self.origin[index],
            self.scale.take(index) if self.scale else None,
            {name: values[index] for name, values in self.environment.items()},
        )


@dataclass(frozen=True, slots=True)
class Moves:
    """The moves of one edge: row `i` takes `region` `i` from `sender` `i` to `receiver` `i`.

    `wanted` is what the receiver wants of its box in this edge: the box itself, grown to whole
    blocks for an amax edge, cut by the edge's window. For an amax edge the region is what the
    sender reads to bound its part of every block.
    """

    edge: int
    region: Boxes
    wanted: Boxes
    sender: Instances
    receiver: Instances
    round: IntArray

    def take(self, index: IntArray) -> "Moves":
        """The moves at positions `index`."""
        return Moves(
            self.edge,
            self.region.take(index),
            self.wanted.take(index),
            self.sender.take(index),
            self.receiver.take(index),
            self.round[index],
        )


def index_grid(indices: Mapping[str, str]) -> Environment:
    """All assignments of `indices` in row-major order: one array per name, of equal length."""
    members = [np.array(indexset.parse(text), dtype=np.int64) for text in indices.values()]
    if not members:
        return {}
    grids = np.meshgrid(*members, indexing="ij")
    return {name: grid.reshape(-1) for name, grid in zip(indices, grids, strict=True)}


def grid_size(indices: Mapping[str, str]) -> int:
    """Number of assignments of `indices`."""
    return prod(len(indexset.parse(text)) for text in indices.values())


def half_instances(
    half: Half, indices: Mapping[str, str], side: PlanSide, ranks: IntArray | None = None
) -> Instances:
    """Every instance of `half` on `ranks` (default: all) that holds at least one element.

    Rows are ordered by rank, then index assignment.
    """
    chosen = np.arange(side.world_size, dtype=np.int64) if ranks is None else ranks
    lookup = table_arrays(side.tables)
    grid = index_grid({**indices, **half.indices})
    count = grid_size(indices) * grid_size(half.indices)
    row_rank, row_point = _present(half.at, grid, count, chosen, side.axes, lookup)
    environment = {name: values[row_point] for name, values in grid.items()}
    environment |= coordinates(side.axes, chosen[row_rank])
    rows = len(row_point)

    def table(entries: tuple[IntExpression, ...]) -> IntArray:
        return _columns(entries, environment, lookup, rows)

    dims = len(half.start)
    step = half.step or (1,) * dims
    box = Boxes(table(half.start), table(half.extent), step)
    own = grid_size(half.indices)
    instances = Instances(
        point=row_point // own,
        extra=row_point % own,
        rank=chosen[row_rank],
        box=box,
        offset=table((half.offset,))[:, 0],
        strides=table(half.strides),
        origin=table(half.origin or (0,) * dims),
        scale=_scale_map(half.scale, environment, lookup, rows),
        environment=environment,
    )
    return instances.take(np.flatnonzero(box.occupied))


def _scale_map(
    scale: ScaleHalf | None, environment: Environment, lookup: Environment, rows: int
) -> ScaleMap | None:
    if scale is None:
        return None
    return ScaleMap(
        _columns(scale.start, environment, lookup, rows),
        _columns(scale.extent, environment, lookup, rows),
        _columns((scale.offset,), environment, lookup, rows)[:, 0],
        _columns(scale.strides, environment, lookup, rows),
    )


def _present(
    at: Mapping[str, IntExpression],
    grid: Environment,
    count: int,
    ranks: IntArray,
    axes: tuple[Axis, ...],
    lookup: Environment,
) -> tuple[IntArray, IntArray]:
    """Positions (in `ranks`, in the grid) at which every coordinate in `at` has its value."""
    place = coordinates(axes, ranks)
    columns: list[IntArray] = []
    for axis, text in at.items():
        wanted = np.broadcast_to(evaluate(parse(text), grid, lookup), (count,))
        columns.append(np.concatenate([place[axis], wanted]))
    number = number_rows(columns, len(ranks) + count)
    held, wanted = number[: len(ranks)], number[len(ranks) :]
    order = np.argsort(wanted, kind="stable")
    row, position = join_sorted(held, wanted[order])
    return row, order[position]


def _columns(
    entries: tuple[IntExpression, ...], environment: Environment, lookup: Environment, rows: int
) -> IntArray:
    """Evaluate one expression per column into an int64 array `[rows, len(entries)]`."""
    result = np.empty((rows, len(entries)), dtype=np.int64)
    for column, entry in enumerate(entries):
        result[:, column] = evaluate(parse(entry), environment, lookup)
    return result


@dataclass(frozen=True, slots=True)
class Holdings:
    """Sender instances grouped by equal box of equal tensor.

    Group `g` is rows `first[g]` on, `count[g]` of them in ascending rank order.
    """

    instances: Instances
    first: IntArray
    count: IntArray

    @property
    def point(self) -> IntArray:
        """The index assignment of each group, ascending."""
        return self.instances.point[self.first]


def holdings(instances: Instances) -> Holdings:
    """Group sender instances into holders of the same box."""
    dims = instances.box.start.shape[1]
    box_keys = [instances.box.start[:, dim] for dim in range(dims)]
    box_keys += [instances.box.extent[:, dim] for dim in range(dims)]
    order = np.lexsort([instances.extra, instances.rank, *reversed(box_keys), instances.point])
    ordered = instances.take(order)
    keys = np.stack([ordered.point, *[key[order] for key in box_keys]], axis=1)
    changes = np.any(keys[1:] != keys[:-1], axis=1) if len(keys) else np.zeros(0, dtype=bool)
    first = np.flatnonzero(np.concatenate([np.ones(min(len(keys), 1), dtype=bool), changes]))
    count = np.diff(np.concatenate([first, [len(keys)]]))
    return Holdings(ordered, first.astype(np.int64), count.astype(np.int64))


def edge_block(edge: Edge) -> Ints | None:
    """The receiver's block in elements, or the sender's where only it is scaled."""
    block = edge.sender.block if edge.receiver.block is None else edge.receiver.block
    return None if block is None else resolve_block(block, edge.shape)


@dataclass(frozen=True, slots=True)
class Cuts:
    """The moves of one edge before it is chosen which of the equal holders sends: `n` rows.

    Row `i` is a `region` that `receiver` `i` takes of the box that the holders of group `group[i]`
    of `source` share. `wanted` is as in `Moves`.
    """

    source: Holdings
    group: IntArray
    receiver: Instances
    region: Boxes
    wanted: Boxes


def edge_cuts(
    plan: TransferPlan,
    edge: Edge,
    senders: IntArray | None = None,
    receivers: IntArray | None = None,
) -> Cuts:
    """Cut the sender's boxes with what the receivers want; ranks default to all of each side.

    Rows are ordered by receiver instance (rank, index assignment), then by the sender's box.
    """
    source = holdings(half_instances(edge.sender, edge.indices, plan.sender, senders))
    target = half_instances(edge.receiver, edge.indices, plan.receiver, receivers)
    row, group = join_sorted(target.point, source.point)
    wanted = target.take(row)
    box = _wanted_box(plan, edge, wanted)
    region = intersect(source.instances.box.take(source.first[group]), box)
    kept = np.flatnonzero(region.occupied)
    return Cuts(source, group[kept], wanted.take(kept), region.take(kept), box.take(kept))


def edge_moves(
    plan: TransferPlan,
    number: int,
    receivers: IntArray | None = None,
    senders: IntArray | None = None,
) -> Moves:
    """All moves of edge `number` to `receivers` (default: every receiver rank).

    Rows are ordered by receiver instance (rank, index assignment), then by the sender's box. With
    `senders`, the move comes from one of these ranks, which may be another than in the full plan.
    """
    edge = plan.edges[number]
    cuts = edge_cuts(plan, edge, senders, receivers)
    held = chosen_holders(plan, edge, cuts.source, cuts.group, cuts.receiver.environment)
    sender = cuts.source.instances.take(held)
    rounds = edge_rounds(plan, edge, cuts)
    return Moves(number, cuts.region, cuts.wanted, sender, cuts.receiver, rounds)


def edge_rounds(plan: TransferPlan, edge: Edge, cuts: Cuts) -> IntArray:
    """The round of every row, `[n]`."""
    rounds = np.empty(len(cuts.group), dtype=np.int64)
    rounds[:] = evaluate(parse(edge.round), cuts.receiver.environment, table_arrays(plan.schedule))
    return rounds


def _wanted_box(plan: TransferPlan, edge: Edge, wanted: Instances) -> Boxes:
    """The receiver's boxes, whole blocks of them for an amax edge, cut by the edge's window."""
    block = edge_block(edge)
    box = wanted.box
    if edge.op is Op.AMAX and block:
        box = grow_to_cells(box, wanted.origin, block, edge.shape)
    if edge.window is None:
        return box
    lookup = table_arrays(plan.receiver.tables)
    rows = len(box.start)
    window = Boxes(
        _columns(edge.window.start, wanted.environment, lookup, rows),
        _columns(edge.window.extent, wanted.environment, lookup, rows),
        (1,) * len(edge.shape),
    )
    return intersect(box, window)


def chosen_holders(
    plan: TransferPlan,
    edge: Edge,
    source: Holdings,
    group: IntArray,
    environment: Environment,
) -> IntArray:
    """The row of `source.instances` that sends to each receiver: number `turn` of its group.

    `group` `[n]` is the group of holders of each receiver, `environment` the receivers' indices,
    axes and ranks, `[n]` each.
    """
    turn: Value = evaluate(parse(edge.turn), environment, table_arrays(plan.schedule))
    first, count = source.first[group], source.count[group]
    if not edge.nearest or plan.seats is None:
        return first + turn % np.maximum(count, 1)
    pairs, holder = repeat_runs(first, count)
    distance = _distance(plan, source.instances.rank[holder], environment[RANK][pairs])
    return _nearest(pairs, holder, distance, turn, len(group))


def _nearest(
    pairs: IntArray, holder: IntArray, distance: IntArray, turn: Value, rows: int
) -> IntArray:
    """For every row: of its holders at the least distance, number `turn` modulo their count."""
    best = np.full(rows, np.iinfo(np.int64).max)
    np.minimum.at(best, pairs, distance)
    near = distance == best[pairs]
    pairs, holder = pairs[near], holder[near]
    count = np.bincount(pairs, minlength=rows)
    before = np.cumsum(count) - count
    return holder[before + turn % np.maximum(count, 1)]


def _distance(plan: TransferPlan, senders: IntArray, receivers: IntArray) -> IntArray:
    """0 on one device, 1 on one host, 2 elsewhere."""
    assert plan.seats is not None
    sender, receiver = plan.seats.sender, plan.seats.receiver
    same_host = _seated(sender.host, senders) == _seated(receiver.host, receivers)
    same_device = _seated(sender.device, senders) == _seated(receiver.device, receivers)
    return 2 - same_host.astype(np.int64) - (same_host & same_device).astype(np.int64)


def _seated(entry: IntExpression, ranks: IntArray) -> IntArray:
    return np.broadcast_to(evaluate(parse(entry), {RANK: ranks}, {}), ranks.shape)


def address(instances: Instances, at: IntArray) -> IntArray:
    """Buffer element, `[n]`, of logical element `at` `[n, d]` of each instance's box."""
    step = np.array(instances.box.step, dtype=np.int64).reshape(1, -1)
    position = (at - instances.box.start) // step
    return instances.offset + np.sum(position * instances.strides, axis=1, dtype=np.int64)

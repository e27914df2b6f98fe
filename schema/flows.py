"""How many bytes every rank sends and receives in every round: a plan's traffic, added up.

Moves are counted without being listed. Index values and receiver ranks that an edge's boxes cannot
tell apart (`alike.py`) are cut with the sender's boxes once. What turns and rounds see of them is
then evaluated at *places*, an index assignment on a receiver rank, with nothing else in tow.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tranship.schema import indexset
from tranship.schema.alike import Grouped, index_groups, rank_groups
from tranship.schema.expression import IntArray, evaluate, parse, variables
from tranship.schema.manifest import IntExpression, Side
from tranship.schema.mesh import coordinates, table_arrays
from tranship.schema.moves import (
    Cuts,
    Environment,
    Moves,
    chosen_holders,
    edge_cuts,
)
from tranship.schema.plan import Edge, Half, TransferPlan
from tranship.schema.rows import join_sorted, number_codes, number_rows, repeat_runs, spread
from tranship.schema.wire import payload


@dataclass(frozen=True)
class Stream:
    """The moves of one edge: `n` rows, of one index value and receiver rank of each kind.

    Row `i` stands for moves of `size[i]` bytes, padding included, from the holders of its group to
    every place of kind `kind[i]`. Place `p` is of kind `place_kind[p]`, ascending, and stands for
    `times[p]` index assignments; `environment` has the indices that are told apart, the axes and
    `rank` of every place.
    """

    cuts: Cuts
    size: IntArray
    kind: IntArray
    place_kind: IntArray
    times: IntArray
    environment: Environment

    @property
    def rank(self) -> IntArray:
        """The receiver rank of every place."""
        return self.environment["rank"]

    @cached_property
    def taken(self) -> IntArray:
        """Bytes that every place takes from all its rows, for all that it stands for."""
        kinds = int(self.place_kind.max(initial=-1)) + 1
        size = np.zeros(kinds, dtype=np.int64)
        np.add.at(size, self.kind, self.size)
        return size[self.place_kind] * self.times

    @property
    def moves(self) -> int:
        """Number of moves."""
        kinds = int(self.place_kind.max(initial=-1)) + 1
        return int((np.bincount(self.kind, minlength=kinds)[self.place_kind] * self.times).sum())


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes by rank and labels: `n` rows, each of `size` bytes of one rank at one set of labels."""

    rank: IntArray
    labels: tuple[IntArray, ...]
    size: IntArray


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of every round: int64 `[rounds, ranks]` of each side; and the number of moves."""

    sender: IntArray
    receiver: IntArray
    moves: int


def stream(plan: TransferPlan, edge: Edge, apart: Collection[str] = ()) -> Stream:
    """Find what an edge moves, telling apart the values of the indices in `apart`.

    Indices that the edge's turn or round reads are told apart as well.
    """
    read = variables(parse(edge.turn)) | variables(parse(edge.round)) | set(apart)
    groups = _index_groups(plan, edge)
    ranks = rank_groups(plan.receiver, _receiver_axes(edge))
    indices = {
        name: indexset.to_text(found.representatives.tolist()) for name, found in groups.items()
    }
    small = edge.model_copy(
        update={
            "indices": indices,
            "sender": _without_addresses(edge.sender),
            "receiver": _without_addresses(edge.receiver),
        }
    )
    cuts = edge_cuts(plan, small, receivers=ranks.representatives)
    size = payload(edge, _unchosen(cuts)).padded
    held = cuts.receiver
    kind = number_rows([held.point, held.rank, held.extra], len(size))
    first = _examples(kind)
    own = {name: held.environment[name][first] for name in edge.receiver.indices}
    return _with_places(plan, cuts, size, kind, first, own, groups, ranks, read)


def _index_groups(plan: TransferPlan, edge: Edge) -> dict[str, Grouped]:
    lookups = {
        Side.SENDER: table_arrays(plan.sender.tables),
        Side.RECEIVER: table_arrays(plan.receiver.tables),
    }
    window = (*edge.window.start, *edge.window.extent) if edge.window else ()
    read = {
        Side.SENDER: tuple(_boxes(edge.sender)),
        Side.RECEIVER: (*_boxes(edge.receiver), *window),
    }
    return {name: index_groups(name, text, read, lookups) for name, text in edge.indices.items()}


def _boxes(half: Half) -> Iterator[IntExpression]:
    """The expressions that decide where a half exists and what it holds."""
    yield from (*half.at.values(), *half.start, *half.extent, *(half.origin or ()))


def _receiver_axes(edge: Edge) -> set[str]:
    window = (*edge.window.start, *edge.window.extent) if edge.window else ()
    texts = (*_boxes(edge.receiver), *window)
    return set(edge.receiver.at).union(*(variables(parse(text)) for text in texts))


def _without_addresses(half: Half) -> Half:
    return half.model_copy(
        update={"offset": 0, "strides": tuple(0 for _ in half.strides), "scale": None}
    )


def _unchosen(cuts: Cuts) -> Moves:
    """The cuts as moves whose senders say nothing: sizes do not depend on who sends."""
    return Moves(0, cuts.region, cuts.wanted, cuts.receiver, cuts.receiver, cuts.group)


def _with_places(
    plan: TransferPlan,
    cuts: Cuts,
    size: IntArray,
    kind: IntArray,
    first: IntArray,
    own: Environment,
    groups: Mapping[str, Grouped],
    ranks: Grouped,
    read: Collection[str],
) -> Stream:
    """Spell the places out: one of the rows `first` for each kind has its indices and rank.

    `own` are the receiver half's own indices, by kind.
    """
    place_kind = np.arange(len(first), dtype=np.int64)
    times = np.ones(len(first), dtype=np.int64)
    columns = own
    for name, found in (*groups.items(), ("rank", ranks)):
        held = cuts.receiver.environment[name][first]
        group = np.searchsorted(found.representatives, held)[place_kind]
        if name != "rank" and name not in read:
            times = times * found.count[group]
            continue
        row, position = repeat_runs(found.first[group], found.count[group])
        columns = {other: values[row] for other, values in columns.items()}
        columns[name] = found.values[position]
        place_kind, times = place_kind[row], times[row]
    environment = columns | coordinates(plan.receiver.axes, columns["rank"])
    return Stream(cuts, size, kind, place_kind, times, environment)


def received(part: Stream, labels: Sequence[IntArray] = ()) -> Share:
    """Add up what every receiver rank takes, by labels of the places."""
    return _summed(part.rank, labels, part.taken)


def sent(plan: TransferPlan, edge: Edge, part: Stream, labels: Sequence[IntArray] = ()) -> Share:
    """Add up what every sender rank sends by the turn of `edge`, by labels of the places."""
    if edge.nearest and plan.seats is not None:
        fine = lanes(plan, edge, part)
        return _summed(fine.sender, [label[fine.place] for label in labels], fine.size)
    label = number_rows(labels, len(part.times))
    lookup = table_arrays(plan.schedule)
    turn = spread(evaluate(parse(edge.turn), part.environment, lookup), len(label))
    count = part.cuts.source.count[part.cuts.group]
    shares = [
        _sent_by(part, np.flatnonzero(count == holders), int(holders), turn, label)
        for holders in np.unique(count)
    ]
    example = _examples(label)
    ranks, numbers, sizes = (
        np.concatenate([np.zeros(0, np.int64), *(share[k] for share in shares)]) for k in range(3)
    )
    return Share(ranks, tuple(values[example][numbers] for values in labels), sizes)


def _sent_by(
    part: Stream, rows: IntArray, holders: int, turn: IntArray, label: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Rank, label and bytes of the rows whose groups have a number of holders.

    Places of one kind, label and holder are added up before they are joined with the rows.
    """
    width = int(label.max(initial=-1)) + 1
    kinds = int(part.place_kind.max(initial=-1)) + 1
    key = (part.place_kind * width + label) * holders + turn % holders
    unique, number = number_codes(key, kinds * width * holders)
    times = np.zeros(len(unique), dtype=np.int64)
    np.add.at(times, number, part.times)
    row, place = join_sorted(part.kind[rows], unique // holders // max(width, 1))
    source, chosen = part.cuts.source, rows[row]
    rank = source.instances.rank[source.first[part.cuts.group[chosen]] + unique[place] % holders]
    return rank, unique[place] // holders % max(width, 1), part.size[chosen] * times[place]


def _summed(rank: IntArray, labels: Sequence[IntArray], size: IntArray) -> Share:
    number = number_rows([rank, *labels], len(rank))
    example = _examples(number)
    total = np.zeros(len(example), dtype=np.int64)
    np.add.at(total, number, size)
    return Share(rank[example], tuple(label[example] for label in labels), total)


def _examples(number: IntArray) -> IntArray:
    """A row of every number, of rows that are numbered from 0 on."""
    example = np.zeros(int(number.max(initial=-1)) + 1, dtype=np.int64)
    example[number] = np.arange(len(number), dtype=np.int64)
    return example


def by_rank(plan: TransferPlan, edge: Edge, part: Stream) -> tuple[IntArray, IntArray]:
    """Add up an edge's bytes for every sender rank, and for every receiver rank."""
    sender = np.zeros(plan.sender.world_size, dtype=np.int64)
    receiver = np.zeros(plan.receiver.world_size, dtype=np.int64)
    for table, share in ((sender, sent(plan, edge, part)), (receiver, received(part))):
        np.add.at(table, share.rank, share.size)
    return sender, receiver


@dataclass(frozen=True, slots=True)
class Lanes:
    """Pairs of ranks: `size` bytes go from `sender` to `receiver`, at a place of the stream."""

    sender: IntArray
    receiver: IntArray
    place: IntArray
    size: IntArray


def lanes(plan: TransferPlan, edge: Edge, part: Stream) -> Lanes:
    """List who sends how much to whom: every row at every place."""
    row, place = join_sorted(part.kind, part.place_kind)
    group, source = part.cuts.group[row], part.cuts.source
    environment = {name: values[place] for name, values in part.environment.items()}
    held = chosen_holders(plan, edge, source, group, environment)
    size = part.size[row] * part.times[place]
    return Lanes(source.instances.rank[held], part.rank[place], place, size)


def traffic(plan: TransferPlan, edges: Iterable[Edge]) -> Traffic:
    """Add up what the edges move; their rounds must be those of the plan."""
    rounds = len(plan.rounds)
    sender = np.zeros((rounds, plan.sender.world_size), dtype=np.int64)
    receiver = np.zeros((rounds, plan.receiver.world_size), dtype=np.int64)
    moves = 0
    for edge in edges:
        part = stream(plan, edge)
        number = place_rounds(plan, edge, part)
        for table, share in (
            (sender, sent(plan, edge, part, [number])),
            (receiver, received(part, [number])),
        ):
            add_at(table, share.labels[0], share.rank, share.size)
        moves += part.moves
    return Traffic(sender, receiver, moves)


def place_rounds(plan: TransferPlan, edge: Edge, part: Stream) -> IntArray:
    """The round in which every place receives."""
    lookup = table_arrays(plan.schedule)
    return spread(evaluate(parse(edge.round), part.environment, lookup), len(part.times))


def add_at(table: IntArray, row: IntArray, column: IntArray, values: IntArray) -> None:
    """Add `values` to the entries `row`, `column` of a table `[rows, columns]`, in place."""
    np.add.at(table.reshape(-1), row * table.shape[1] + column, values)

"""Cover rows by one family: index sets, `at`, and an expression for every column.

Rows are the members of a family on the ranks where they are: buffers on ranks, pieces in the
buffers of a buffer family, or tensors. Where no one family has exactly these rows, the answer is
how to split them. `fold.py` states the algorithm.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from tranship.schema.expression import Constant, Expression, IntArray, Lookup, Operation
from tranship.schema.fit import Frame, combine, fit, make_frame
from tranship.schema.indexset import to_text as index_set_text
from tranship.schema.manifest import Axis
from tranship.schema.mesh import RANK, coordinates
from tranship.schema.names import is_variable

MAX_SET_TEXT = 4096
"""Longest text of an index set, in characters."""


@dataclass(frozen=True)
class Domain:
    """Where members can be: ranks, or the buffers of a family, one per index values and rank.

    `indices` holds the index values and `ranks` the rank of each place, [places] each.
    """

    axes: tuple[Axis, ...]
    world_size: int
    indices: dict[str, IntArray]
    ranks: IntArray

    def axis_values(self, places: IntArray) -> dict[str, IntArray]:
        """Coordinates of the ranks of `places` on the axes and as `rank`, [places] each."""
        return coordinates(self.axes, self.ranks[places])

    @property
    def sizes(self) -> dict[str, int]:
        """How many coordinates each axis has, `rank` included."""
        return {axis.name: axis.size for axis in self.axes} | {RANK: self.world_size}


@dataclass(frozen=True)
class Field:
    """A field of the members: its integers, [rows, entries], and a label per entry for tables."""

    name: str
    values: IntArray
    labels: tuple[str, ...]


def uniform_field(name: str, values: IntArray) -> Field:
    """Make a field whose entries are all labelled with its name."""
    return Field(name, values, (name,) * values.shape[1])


@dataclass(frozen=True)
class Rows:
    """Members: the place in a domain and the own index values of each, [rows], and their fields.

    One entry of the field named `vanishing` may be 0 where a member is not there.
    """

    places: IntArray
    own: dict[str, IntArray]
    fields: tuple[Field, ...]
    vanishing: str = ""

    def take(self, chosen: IntArray) -> "Rows":
        """Keep the rows at these positions."""
        fields = tuple(replace(field, values=field.values[chosen]) for field in self.fields)
        own = {name: values[chosen] for name, values in self.own.items()}
        return Rows(self.places[chosen], own, fields, self.vanishing)


@dataclass(frozen=True)
class Cover:
    """One family: its index sets, `at`, and the expressions of its fields."""

    indices: dict[str, tuple[int, ...]]
    at: dict[str, Expression]
    fields: dict[str, tuple[Expression, ...]]

    def expressions(self) -> Iterator[Expression]:
        """Yield all expressions in order."""
        yield from self.at.values()
        for entries in self.fields.values():
            yield from entries


@dataclass(frozen=True)
class Split:
    """Part the rows by the class of their value of an index, an axis or `rank`."""

    name: str
    classes: dict[int, int]

    def parts(self, values: IntArray) -> list[IntArray]:
        """Positions of the rows of each class, given each row's value, empty classes left out."""
        classes = np.array([self.classes[value] for value in values.tolist()], dtype=np.int64)
        return [np.flatnonzero(classes == one) for one in np.unique(classes)]


def cover(domain: Domain, rows: Rows) -> Cover | Split:
    """Cover `rows` by one family, or say how to split them.

    No two rows may agree in place and own index values.
    """
    members = _members(domain, rows)
    split = _split_uneven(members) or _split_long(members)
    if split:
        return split
    at = _locate(members)
    absent = _absent(members, at)
    frame = _frame(members, members.own, rows.places)
    fields: dict[str, tuple[Expression, ...]] = {}
    for field in rows.fields:
        fitted = _fit_field(field, frame)
        if not isinstance(fitted, tuple):
            return _split_column(members, fitted)
        fields[field.name] = fitted
    if len(absent[0]):
        vanishing = _vanish(members, fields, absent)
        if vanishing is None:
            return _split_ranks(members)
        fields |= vanishing
    sets = {name: tuple(np.unique(values).tolist()) for name, values in members.own.items()}
    return Cover(sets, at, fields)


def _fit_field(field: Field, frame: Frame) -> tuple[Expression, ...] | IntArray:
    """Fit all entries; return the first column that does not fit instead."""
    fitted: list[Expression] = []
    for label, column in zip(field.labels, field.values.T, strict=True):
        expression = fit(label, column, frame)
        if expression is None:
            return column
        fitted.append(expression)
    return tuple(fitted)


@dataclass(frozen=True)
class _Members:
    """Rows, and what the steps of a cover share.

    Attributes:
        own: Own indices that vary, [rows] each.
        given: Indices of the domain, [rows] each.
        axes: Coordinates on the axes and `rank`, [rows] each.
        member: Number of each row's index values, own and given, [rows].
        first: One row of each member, [members].
        entity: Number of each place's index values, [places].
    """

    domain: Domain
    rows: Rows
    own: dict[str, IntArray]
    given: dict[str, IntArray]
    axes: dict[str, IntArray]
    member: IntArray
    first: IntArray
    entity: IntArray

    @property
    def indices(self) -> dict[str, IntArray]:
        return {**self.own, **self.given}


def _members(domain: Domain, rows: Rows) -> _Members:
    own = {name: values for name, values in rows.own.items() if (values != values[0]).any()}
    given = {name: values[rows.places] for name, values in domain.indices.items()}
    member = combine([*own.values(), *given.values()], len(rows.places))
    first = np.unique(member, return_index=True)[1].astype(np.int64)
    entity = combine([*domain.indices.values()], len(domain.ranks))
    return _Members(domain, rows, own, given, domain.axis_values(rows.places), member, first, entity)


def _frame(members: _Members, own: dict[str, IntArray], places: IntArray) -> Frame:
    given = {name: values[places] for name, values in members.domain.indices.items()}
    axes = {n: v for n, v in members.domain.axis_values(places).items() if is_variable(n)}
    return make_frame({**own, **given}, axes, members.domain.sizes)


# Which members there are: the own indices' sets must form a product with the domain's members.


def _split_uneven(members: _Members) -> Split | None:
    sizes = [len(np.unique(values)) for values in members.own.values()]
    if len(members.first) == math.prod(sizes) * (int(members.entity.max()) + 1):
        return None
    chosen = {name: values[members.first] for name, values in members.indices.items()}
    found: list[Split] = []
    for name, values in chosen.items():
        others = combine([v for other, v in chosen.items() if other != name], len(values))
        universe = members.domain.indices.get(name, values)
        found.append(Split(name, _classes(values, others, others, universe)))
    return _best(found, members.indices)


def _split_long(members: _Members) -> Split | None:
    for name, values in members.own.items():
        distinct = np.unique(values).tolist()
        if len(index_set_text(distinct)) > MAX_SET_TEXT:
            half = len(distinct) // 2
            return Split(name, {value: int(n >= half) for n, value in enumerate(distinct)})
    return None


# Where they are: the axes on which every member has one coordinate.


def _locate(members: _Members) -> dict[str, Expression]:
    """Find the `at` that leaves the fewest places beside the rows, with no axis in vain."""
    places = members.rows.places[members.first]
    own = {name: values[members.first] for name, values in members.own.items()}
    given = {name: values[places] for name, values in members.domain.indices.items()}
    frame = make_frame({**own, **given}, {}, {})
    at: dict[str, Expression] = {}
    for name, values in members.axes.items():
        coordinate = values[members.first]
        if np.array_equal(coordinate[members.member], values):
            expression = fit(name, coordinate, frame)
            if expression is not None:
                at[name] = expression
    return _needed(members, at)


def _needed(members: _Members, at: dict[str, Expression]) -> dict[str, Expression]:
    """Choose the fewest axes that leave no more places than all do; of those, the simplest."""
    least = _place_count(members, at)
    for count in range(len(at)):
        enough = [
            chosen
            for names in combinations(at, count)
            if _place_count(members, chosen := {name: at[name] for name in names}) == least
        ]
        if enough:
            return min(enough, key=lambda chosen: _preference(chosen, list(at)))
    return at


def _preference(chosen: dict[str, Expression], order: list[str]) -> tuple[object, ...]:
    """Rank comes last; then tables and operations count; then early constants, late expressions."""
    complexities = [_complexity(expression) for expression in chosen.values()]
    places = [
        order.index(name) * (1 if isinstance(expression, Constant) else -1)
        for name, expression in chosen.items()
    ]
    return RANK in chosen, *(sum(one) for one in zip((0, 0), *complexities, strict=True)), places


def _complexity(expression: Expression) -> tuple[int, int]:
    """Tables first, then operations."""
    match expression:
        case Lookup(_, index):
            inner = _complexity(index)
            return inner[0] + 1, inner[1]
        case Operation(_, left, right):
            one, two = _complexity(left), _complexity(right)
            return one[0] + two[0], one[1] + two[1] + 1
        case _:
            return 0, 0


def _cells(members: _Members, at: Mapping[str, Expression]) -> IntArray:
    """Number the places so that a member that is at one place may be at all with its number."""
    axes = members.domain.axis_values(np.arange(len(members.domain.ranks)))
    return combine([members.entity, *(axes[name] for name in at)], len(members.entity))


def _place_count(members: _Members, at: Mapping[str, Expression]) -> int:
    """Count the places of all members under `at`."""
    cells = _cells(members, at)
    return int(np.bincount(cells)[cells[members.rows.places[members.first]]].sum())


def _absent(members: _Members, at: Mapping[str, Expression]) -> tuple[IntArray, IntArray]:
    """Find members and places, [absent] each, that `at` joins and no row has."""
    if _place_count(members, at) == len(members.rows.places):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    cells = _cells(members, at)
    order = np.argsort(cells, kind="stable")
    counts = np.bincount(cells)
    starts = np.cumsum(counts) - counts
    cell = cells[members.rows.places[members.first]]
    member = np.repeat(np.arange(len(cell)), counts[cell])
    within = np.arange(len(member)) - np.repeat(np.cumsum(counts[cell]) - counts[cell], counts[cell])
    place = order[np.repeat(starts[cell], counts[cell]) + within]
    present = members.member * len(cells) + members.rows.places
    missing = ~np.isin(member * len(cells) + place, present)
    return member[missing], place[missing]


def _vanish(
    members: _Members,
    fields: Mapping[str, tuple[Expression, ...]],
    absent: tuple[IntArray, IntArray],
) -> dict[str, tuple[Expression, ...]] | None:
    """Fit one entry of the vanishing field again, as 0 in the `absent` rows; None if none fits."""
    member, place = absent
    places = np.concatenate([members.rows.places, place])
    own = {
        name: np.concatenate([values, values[members.first][member]])
        for name, values in members.own.items()
    }
    frame = _frame(members, own, places)
    for field in members.rows.fields:
        for entry, label in enumerate(field.labels if field.name == members.rows.vanishing else ()):
            zeros = np.zeros(len(member), dtype=np.int64)
            expression = fit(label, np.concatenate([field.values[:, entry], zeros]), frame)
            if expression is not None:
                entries = fields[field.name]
                return {field.name: (*entries[:entry], expression, *entries[entry + 1 :])}
    return None


# How to split: by the index or axis with the fewest classes of values.


def _split_column(members: _Members, column: IntArray) -> Split:
    """Split where the column differs: indices by classes of values, axes by single coordinates."""
    indices, ranks = members.indices, members.axes[RANK]
    fallback = {**indices, **members.axes}
    found: list[Split] = []
    for name, values in indices.items():
        others = [v for other, v in indices.items() if other != name]
        order = combine([*others, ranks], len(ranks))
        found.append(Split(name, _classes(values, order, column, values)))
    order = combine([*indices.values(), ranks], len(ranks))
    return _best([*found, *_axis_splits(members, order, column)], fallback)


def _split_ranks(members: _Members) -> Split:
    """Split where the ranks of the members differ."""
    indices, ranks = members.indices, members.axes[RANK]
    fallback = {**indices, **members.axes}
    found: list[Split] = []
    for name, values in indices.items():
        others = [v for other, v in indices.items() if other != name]
        order = combine([*others, ranks], len(ranks))
        found.append(Split(name, _classes(values, order, order, values)))
    return _best([*found, *_axis_splits(members, members.member, members.member)], fallback)


def _axis_splits(members: _Members, order: IntArray, content: IntArray) -> Iterator[Split]:
    for name, values in members.axes.items():
        classes = _classes(values, order, content, values)
        if len(set(classes.values())) > 1:
            yield _singles(name, values)


def _singles(name: str, values: IntArray) -> Split:
    return Split(name, {value: n for n, value in enumerate(np.unique(values).tolist())})


def _best(found: list[Split], fallback: Mapping[str, IntArray]) -> Split:
    """Choose the first with the fewest classes, two or more; without one, part all values."""
    useful = [split for split in found if len(set(split.classes.values())) > 1]
    if useful:
        return min(useful, key=lambda split: len(set(split.classes.values())))
    name, values = next((n, v) for n, v in fallback.items() if (v != v[0]).any())
    return _singles(name, values)


def _classes(
    values: IntArray, order: IntArray, content: IntArray, universe: IntArray
) -> dict[int, int]:
    """Number the values in `universe` by what `content` is in their rows, sorted by `order`."""
    rows = np.lexsort((order, values))
    distinct, starts = np.unique(values[rows], return_index=True)
    slices = dict(zip(distinct.tolist(), np.split(content[rows], starts[1:]), strict=True))
    kinds: dict[bytes, int] = {}
    classes: dict[int, int] = {}
    for value in np.unique(universe).tolist():
        key = slices[value].tobytes() if value in slices else b""
        classes[value] = kinds.setdefault(key, len(kinds))
    return classes

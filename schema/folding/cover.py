"""Cover rows by one family: index sets, `at`, and an expression for every entry of every field.

Where no one family has exactly these rows, the answer is how to split them.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from tranship.schema.expression import Constant, Expression, IntArray, Variable
from tranship.schema.folding.fit import Frame, fit, make_frame
from tranship.schema.folding.names import is_variable
from tranship.schema.folding.rows import (
    NUMBERS,
    Cover,
    Domain,
    Field,
    Members,
    Rows,
    Split,
    combine,
    find_members,
)
from tranship.schema.folding.splits import split_column, split_long, split_ranks, split_uneven
from tranship.schema.folding.terms import complexity
from tranship.schema.mesh import RANK

Entries = tuple[Expression, ...]


def cover(domain: Domain, rows: Rows) -> Cover | Split:
    """Cover `rows` by one family, or say how to split them.

    No two rows may agree in place and own index values.
    """
    members = find_members(domain, rows)
    split = split_uneven(members) or split_long(members)
    if split:
        return split
    at = _locate(members)
    fields: dict[str, Entries] = {}
    for field in rows.fields:
        fitted = _fit_field(members, field)
        if not isinstance(fitted, tuple):
            return split_column(members, fitted)
        fields[field.name] = fitted
    absent = _absent(members, at)
    if len(absent[0]):
        vanishing = _vanish(members, fields, absent)
        if vanishing is None:
            return split_ranks(members)
        fields |= vanishing
    sets = {name: tuple(np.unique(values).tolist()) for name, values in members.own.items()}
    return Cover(sets, at, fields)


def _fit_field(members: Members, field: Field) -> Entries | IntArray:
    """Fit all entries; return the first column that does not fit instead."""
    frame = _frame(members.domain, members.own, members.rows.places)
    fitted: list[Expression] = []
    for label, column in zip(field.labels, field.values.T, strict=True):
        namesake = members.indices.get(label) if field.name == NUMBERS else None
        if namesake is not None and np.array_equal(namesake, column):
            fitted.append(Variable(label))
            continue
        expression = fit(label, column, frame)
        if expression is None:
            return column
        fitted.append(expression)
    return tuple(fitted)


def _frame(domain: Domain, own: Mapping[str, IntArray], places: IntArray) -> Frame:
    given = {name: values[places] for name, values in domain.indices.items()}
    axes = {name: v for name, v in domain.axis_values(places).items() if is_variable(name)}
    return make_frame({**own, **given}, axes, domain.sizes)


# Where the members are: `at` names axes on which each has one coordinate.


def _locate(members: Members) -> dict[str, Expression]:
    """Find the `at` that leaves the fewest places beside the rows, with no axis in vain."""
    indices = {name: values[members.first] for name, values in members.indices.items()}
    frame = make_frame(indices, {}, {})
    at: dict[str, Expression] = {}
    for name, values in members.axes.items():
        coordinate = values[members.first]
        if np.array_equal(coordinate[members.member], values):
            expression = fit(name, coordinate, frame)
            if expression is not None:
                at[name] = expression
    least = _place_count(members, at)
    axes = {name: expression for name, expression in at.items() if name != RANK}
    return _fewest_axes(members, axes if _place_count(members, axes) == least else at, least)


def _fewest_axes(members: Members, at: dict[str, Expression], places: int) -> dict[str, Expression]:
    """Choose the fewest axes that leave no more than `places`; of those, the simplest."""
    for count in range(len(at)):
        enough = [
            chosen
            for names in combinations(at, count)
            if _place_count(members, chosen := {name: at[name] for name in names}) == places
        ]
        if enough:
            return min(enough, key=lambda chosen: _preference(chosen, list(at)))
    return at


def _preference(chosen: dict[str, Expression], order: list[str]) -> tuple[object, ...]:
    """Count entries of tables, then operations; then early constants and late expressions win."""
    entries, operations = 0, 0
    places: list[int] = []
    for name, expression in chosen.items():
        cost = complexity(expression)
        entries, operations = entries + cost[0], operations + cost[1]
        places.append(order.index(name) * (1 if isinstance(expression, Constant) else -1))
    return entries, operations, places


def _cells(members: Members, at: Mapping[str, Expression]) -> IntArray:
    """Number the places so that a member that is at one place may be at all with its number."""
    axes = members.domain.axis_values(np.arange(len(members.domain.ranks)))
    return combine([members.entity, *(axes[name] for name in at)], len(members.entity))


def _place_count(members: Members, at: Mapping[str, Expression]) -> int:
    """Count the places of all members under `at`."""
    cells = _cells(members, at)
    return int(np.bincount(cells)[cells[members.rows.places[members.first]]].sum())


# Where they are not, though `at` holds: a piece may be empty there.


def _absent(members: Members, at: Mapping[str, Expression]) -> tuple[IntArray, IntArray]:
    """Find members and places, [absent] each, that `at` joins and no row has."""
    cells = _cells(members, at)
    by_cell = np.argsort(cells, kind="stable")
    sizes = np.bincount(cells)
    starts = np.cumsum(sizes) - sizes
    cell = cells[members.rows.places[members.first]]
    member = np.repeat(np.arange(len(cell)), sizes[cell])
    offsets = np.repeat(starts[cell] - np.cumsum(sizes[cell]) + sizes[cell], sizes[cell])
    place = by_cell[offsets + np.arange(len(member))]
    present = members.member * len(cells) + members.rows.places
    missing = ~np.isin(member * len(cells) + place, present)
    return member[missing], place[missing]


def _vanish(
    members: Members, fields: Mapping[str, Entries], absent: tuple[IntArray, IntArray]
) -> dict[str, Entries] | None:
    """Fit one entry of the vanishing field again, as 0 in the `absent` rows; None if none fits."""
    member, place = absent
    own = {
        name: np.concatenate([values, values[members.first][member]])
        for name, values in members.own.items()
    }
    frame = _frame(members.domain, own, np.concatenate([members.rows.places, place]))
    zeros = np.zeros(len(member), dtype=np.int64)
    for field in members.rows.fields:
        if field.name == members.rows.vanishing:
            for entry, label in enumerate(field.labels):
                column = np.concatenate([field.values[:, entry], zeros])
                expression = fit(label, column, frame)
                if expression is not None:
                    entries = fields[field.name]
                    return {field.name: (*entries[:entry], expression, *entries[entry + 1 :])}
    return None

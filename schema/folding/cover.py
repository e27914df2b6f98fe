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
    Members,
    Rows,
    Split,
    combine,
    find_members,
)
from tranship.schema.folding.splits import split_column, split_long, split_ranks, split_uneven
from tranship.schema.folding.terms import complexity, evaluate_draft
from tranship.schema.mesh import RANK

Entries = tuple[Expression, ...]

SIZES = frozenset({"extent", "sizes", "strides"})
"""Fields that may not be negative, even of a piece that holds nothing."""


def cover(domain: Domain, rows: Rows) -> Cover | Split:
    """Cover `rows` by one family, or say how to split them.

    No two rows may agree in place and own index values.
    """
    members = find_members(domain, rows)
    split = split_uneven(members) or split_long(members)
    if split:
        return split
    at = _locate(members)
    is_exact = _place_count(members, at) == len(rows.places)
    if not is_exact and not rows.vanishing:
        return split_ranks(members)
    fields = _fit_fields(members)
    if not isinstance(fields, dict):
        return split_column(members, fields)
    if not is_exact:
        vanishing = _vanish(members, fields, _absent(members, at))
        if vanishing is None:
            return split_ranks(members)
        fields = vanishing
    sets = {name: tuple(np.unique(values).tolist()) for name, values in members.own.items()}
    return Cover(sets, at, fields)


def _fit_fields(members: Members) -> dict[str, Entries] | IntArray:
    """Fit all entries of all fields; return the first column that does not fit instead."""
    by_index = make_frame(members.indices, {}, {})
    by_place = _frame(members.domain, members.indices, members.rows.places)
    fields: dict[str, Entries] = {}
    for field in members.rows.fields:
        entries: list[Expression] = []
        for label, column in zip(field.labels, field.values.T, strict=True):
            if field.name == NUMBERS:
                expression = _fit_number(members, label, column, by_index)
            else:
                expression = fit(label, column, by_place)
            if expression is None:
                return column
            entries.append(expression)
        fields[field.name] = tuple(entries)
    return fields


def _fit_number(
    members: Members, label: str, column: IntArray, by_index: Frame
) -> Expression | None:
    """Fit a number of a name, which may read indices alone; its own index comes first."""
    namesake = members.indices.get(label)
    if namesake is not None and np.array_equal(namesake, column):
        return Variable(label)
    return fit(label, column, by_index)


def _frame(domain: Domain, indices: Mapping[str, IntArray], places: IntArray) -> Frame:
    axes = {name: v for name, v in domain.axis_values(places).items() if is_variable(name)}
    return make_frame(indices, axes, domain.sizes)


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
    """Fit one entry of the vanishing field to the ranks, as 0 in the `absent` rows.

    Returns:
        All fields, or None where no entry fits.
    """
    member, place = absent
    own = {name: values[members.first][member] for name, values in members.own.items()}
    frame = _frame(members.domain, {}, np.concatenate([members.rows.places, place]))
    zeros = np.zeros(len(member), dtype=np.int64)
    vanishing = next(f for f in members.rows.fields if f.name == members.rows.vanishing)
    for entry, label in enumerate(vanishing.labels):
        column = np.concatenate([vanishing.values[:, entry], zeros])
        expression = fit(label, column, frame)
        if expression is not None:
            entries = list(fields[vanishing.name])
            entries[entry] = expression
            result = {**fields, vanishing.name: tuple(entries)}
            return result if _is_sane(members.domain, own, place, result) else None
    return None


def _is_sane(
    domain: Domain, own: Mapping[str, IntArray], places: IntArray, fields: Mapping[str, Entries]
) -> bool:
    """Whether sizes and strides are not negative either where nothing is."""
    given = {name: values[places] for name, values in domain.indices.items()}
    environment = {**own, **given, **domain.axis_values(places)}
    return all(
        bool(np.all(np.asarray(evaluate_draft(expression, environment)) >= 0))
        for name, entries in fields.items()
        if name in SIZES
        for expression in entries
    )

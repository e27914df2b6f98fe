"""Fit a column of integers as an expression of indices, axes and rank."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations

import numpy as np

from tranship.schema.expression import LIMIT, Constant, Expression, IntArray, Operation
from tranship.schema.folding.forms import Input, bases, closed_form, slope, table_form
from tranship.schema.folding.rows import combine
from tranship.schema.folding.terms import Sum, Term, complexity, sum_expression
from tranship.schema.mesh import RANK


@dataclass(frozen=True, slots=True)
class Points:
    """Rows that differ in what some inputs are, and a column there.

    `x` holds the values of `inputs`, each [points]; no two points agree in all of them, and the
    points are in ascending order of them, the first input counting most.
    """

    inputs: tuple[Input, ...]
    x: tuple[IntArray, ...]
    y: IntArray


@dataclass(frozen=True)
class _View:
    """Which rows agree in some inputs: one row of each kind, and each row's kind."""

    first: IntArray
    kind: IntArray


@dataclass(frozen=True)
class Frame:
    """The rows of a family as a fit sees them: what every input is in every row, [rows] each.

    Which rows agree in some inputs is worked out once, not for every column.
    """

    inputs: tuple[Input, ...]
    values: tuple[IntArray, ...]
    _views: dict[tuple[int, ...], _View] = field(default_factory=dict[tuple[int, ...], _View])

    def select(self, y: IntArray, chosen: tuple[int, ...]) -> Points | None:
        """Reduce `y` to points of the `chosen` inputs, or None where they do not determine it."""
        if chosen not in self._views:
            self._views[chosen] = _view([self.values[position] for position in chosen])
        view = self._views[chosen]
        reduced = y[view.first]
        if not np.array_equal(reduced[view.kind], y):
            return None
        x = tuple(self.values[position][view.first] for position in chosen)
        return Points(tuple(self.inputs[position] for position in chosen), x, reduced)


def _view(values: list[IntArray]) -> _View:
    code = combine(values, len(values[0]))
    _, first, kind = np.unique(code, return_index=True, return_inverse=True)
    return _View(first.astype(np.int64), kind.astype(np.int64))


def make_frame(
    indices: Mapping[str, IntArray], axes: Mapping[str, IntArray], sizes: Mapping[str, int]
) -> Frame:
    """List the inputs that vary: `indices`, then `axes`, each in the order given.

    Args:
        indices: Values of the indices, [rows] each.
        axes: Coordinates of the rows' ranks, `rank` last, [rows] each.
        sizes: How many coordinates each axis has, `rank` included.
    """
    inputs: list[Input] = []
    values: list[IntArray] = []
    for name, column in {**indices, **axes}.items():
        if (column != column[0]).any():
            size = int(column.max()) + 1 if name in indices else sizes[name]
            inputs.append(Input(name, len(inputs), size, name not in indices))
            values.append(column)
    return Frame(tuple(inputs), tuple(values))


def fit(label: str, y: IntArray, frame: Frame) -> Expression | None:
    """Find the canonical expression of `y`, the simplest as fold.py states it.

    Args:
        label: What the column holds; names its tables.
        y: The column, int64 [rows].
        frame: The rows.

    Returns:
        The expression, or None where no form fits.
    """
    if (y == y[0]).all():
        return Constant(int(y[0]))
    positions = tuple(range(len(frame.inputs)))
    plain = tuple(place for place in positions if frame.inputs[place].name != RANK)
    found = _search(label, y, frame, _choices(plain))
    if found is None and plain != positions:
        with_rank = [chosen for chosen in _choices(positions) if positions[-1] in chosen]
        found = _search(label, y, frame, with_rank)
    return sum_expression(found) if found else None


_Form = Callable[[str, Points], Iterator[Sum]]


def _choices(positions: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [chosen for count in (1, 2, 3) for chosen in combinations(positions, count)]


def _search(label: str, y: IntArray, frame: Frame, choices: list[tuple[int, ...]]) -> Sum | None:
    """Return the simplest form of the first stage at which one fits."""
    stages: tuple[tuple[_Form, tuple[int, ...]], ...] = (
        (_closed_sums, (1,)),
        (_closed_sums, (2,)),
        (_sums_with_table, (1, 2)),
        (_closed_sums, (3,)),
        (_sums_with_table, (3,)),
        (_scaled_forms, (2,)),
        (_two_tables, (2,)),
    )
    for form, counts in stages:
        selected = (frame.select(y, chosen) for chosen in choices if len(chosen) in counts)
        found = [total for points in selected if points for total in form(label, points)]
        if found:
            return min(found, key=lambda total: complexity(sum_expression(total)))
    return None


def _closed_sums(label: str, points: Points) -> Iterator[Sum]:
    return _stripped(label, points, tables=False)


def _sums_with_table(label: str, points: Points) -> Iterator[Sum]:
    return _stripped(label, points, tables=True)


def _stripped(label: str, points: Points, *, tables: bool) -> Iterator[Sum]:
    """Take away `a * base` of all inputs but one; the last has a closed form, or a table."""
    if len(points.inputs) == 1:
        found = _single(label, points, tables=tables)
        if found:
            yield found
        return
    for position in range(len(points.inputs)):
        for term, rest in _strip(points, position):
            yield from (total.plus(term) for total in _stripped(label, rest, tables=tables))


def _single(label: str, points: Points, *, tables: bool) -> Sum | None:
    (source,), (x,), y = points.inputs, points.x, points.y
    if (y == y[0]).all():
        return Sum(int(y[0]))
    if len(x) < 2:
        return None
    return closed_form(x, y, source) or (table_form(x, y, source, label) if tables else None)


def _strip(points: Points, position: int) -> Iterator[tuple[Term, Points]]:
    """Yield each `a * base` of one input, a not 0, that leaves a column of the other inputs."""
    source, x = points.inputs[position], points.x[position]
    others = [place for place in range(len(points.inputs)) if place != position]
    group = combine([points.x[place] for place in others], len(x))
    order = np.argsort(group, kind="stable")
    joined = np.diff(group[order]) == 0
    first = np.unique(group, return_index=True)[1]
    for base, values in bases(x, source.name):
        factor = slope(points.y[order], values[order], joined)
        if factor:
            rest = (points.y - factor * values)[first]
            inputs = tuple(points.inputs[place] for place in others)
            columns = tuple(points.x[place][first] for place in others)
            yield Term(source.order, factor, base), Points(inputs, columns, rest)


def _scaled_forms(label: str, points: Points) -> Iterator[Sum]:
    """Fit `F(v) * base(u) + G(v)`, with F and G of one variable each."""
    for one, other in permutations((0, 1)):
        source, v = points.inputs[one], points.inputs[other]
        for base, values in bases(points.x[one], source.name):
            lines = _lines_per_value(points.x[other], values, points.y)
            if lines is None:
                continue
            distinct, factors, constants = lines
            scale = _single(f"{label}_step", Points((v,), (distinct,), factors), tables=True)
            rest = _single(label, Points((v,), (distinct,), constants), tables=True)
            if scale and rest:
                product = Operation("*", base, sum_expression(scale))
                yield rest.plus(Term(source.order, 1, product))


def _lines_per_value(
    v: IntArray, base: IntArray, y: IntArray
) -> tuple[IntArray, IntArray, IntArray] | None:
    """Fit `a * base + b` for each value of `v`: the values, and each one's a and b."""
    lines: list[tuple[int, int, int]] = []
    for value in np.unique(v):
        chosen = v == value
        factor = slope(y[chosen], base[chosen])
        if factor is None:
            return None
        lines.append((int(value), factor, int(y[chosen][0]) - factor * int(base[chosen][0])))
    distinct, factors, constants = np.array(lines, dtype=np.int64).T
    return distinct, factors, constants


def _two_tables(label: str, points: Points) -> Iterator[Sum]:
    """Fit a table of the first input plus a table of the second.

    The first starts with 0; it is read off at the smallest value of the second input at which
    every value of the first occurs.
    """
    u, v = points.x
    distinct = np.unique(u)
    if int(np.abs(points.y).max()) >= LIMIT // 4:
        return
    complete = [value for value in np.unique(v) if np.count_nonzero(v == value) == len(distinct)]
    if not complete:
        return
    first = points.y[v == complete[0]] - points.y[v == complete[0]][0]
    rest = points.y - first[np.searchsorted(distinct, u)]
    seconds = Frame(points.inputs, points.x).select(rest, (1,))
    firsts = Points(points.inputs[:1], (distinct,), first)
    if seconds:
        one = _single(label, firsts, tables=True)
        two = _single(label, seconds, tables=True)
        if one and two:
            yield replace(two, constant=one.constant + two.constant, terms=one.terms + two.terms)

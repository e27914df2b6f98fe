"""Forms of one variable: the closed form or table that gives a column of integers.

The points of a form are the different values `x` of its input, ascending, and the column `y`
there; both int64 of shape [points], at least two points.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tranship.schema.expression import (
    LIMIT,
    Constant,
    Expression,
    IntArray,
    Operation,
    Variable,
)
from tranship.schema.terms import Sum, TableDraft, Term, lookup_draft, sum_expression

MAX_DIVISOR = 1024
"""Largest `n` that is tried in `x // n` and `x % n`."""

MAX_TABLE = 1 << 16
"""Most entries of a table."""


@dataclass(frozen=True, slots=True)
class Input:
    """What an expression may read: an index, an axis or `rank`.

    `size` is the number of entries of a table over it. Only a rank's coordinates, with
    `saturates`, are tried in clamped forms: those describe shards that end before the ranks do.
    """

    name: str
    order: int
    size: int
    saturates: bool


def bases(x: IntArray, name: str) -> Iterator[tuple[Expression, IntArray]]:
    """Yield `x`, then `x // n` for all n from 2 on, then `x % n`: the expression and its values.

    n goes up to the largest `x`, and no further than `MAX_DIVISOR`.
    """
    variable = Variable(name)
    divisors = range(2, min(int(x.max()), MAX_DIVISOR) + 1)
    yield variable, x
    for n in divisors:
        yield Operation("//", variable, Constant(n)), x // n
    for n in divisors:
        yield Operation("%", variable, Constant(n)), x % n


def slope(y: IntArray, base: IntArray, joined: slice | np.ndarray = slice(None)) -> int | None:
    """Find the integer `a` for which `y - a * base` never changes from a point to the next.

    Args:
        y: The column, [points].
        base: Values of the base there, [points].
        joined: Which of the [points - 1] steps count.

    Returns:
        `a`, or None if there is none or it is not determined.
    """
    dy, dx = np.diff(y)[joined], np.diff(base)[joined]
    moved = np.flatnonzero(dx)
    if not len(moved):
        return None
    factor, remainder = divmod(int(dy[moved[0]]), int(dx[moved[0]]))
    small = abs(factor) * (int(np.abs(base).max()) + 1) < LIMIT
    return factor if not remainder and small and np.array_equal(dy, factor * dx) else None


def closed_form(x: IntArray, y: IntArray, source: Input) -> Sum | None:
    """Fit `a * x + b`, `a * (x // n) + b`, `a * (x % n) + b`, or clamped `a * x + b`, in that order."""
    for base, values in bases(x, source.name):
        factor = slope(y, values)
        if factor is not None:
            constant = int(y[0]) - factor * int(values[0])
            return Sum(constant, (Term(source.order, factor, base),))
    return _clamped_form(x, y, source) if source.saturates else None


def _clamped_form(x: IntArray, y: IntArray, source: Input) -> Sum | None:
    """Fit `max(min(a * x + b, high), low)`, as far as it needs `min` and `max`.

    The lines tried are those of chunks, with slope -high and then +high, through the first value
    between low and high (without one: where a chunk that is full would follow the last full one);
    then the line through the first two neighbours that differ.
    """
    low, high = int(y.min()), int(y.max())
    for factor, constant in _lines(x, y, low, high):
        if abs(factor) * (int(x[-1]) + 1) + abs(constant) >= LIMIT:
            continue
        line = factor * x + constant
        if np.array_equal(np.clip(line, low, high), y):
            expression = sum_expression(
                Sum(constant, (Term(0, factor, Variable(source.name)),))
            )
            if int(line.max()) > high:
                expression = Operation("min", Constant(high), expression)
            if int(line.min()) < low:
                expression = Operation("max", expression, Constant(low))
            return Sum(0, (Term(source.order, 1, expression),))
    return None


def _lines(x: IntArray, y: IntArray, low: int, high: int) -> Iterator[tuple[int, int]]:
    between = np.flatnonzero((low < y) & (y < high))
    full = np.flatnonzero(y == high)
    for factor, edge in ((-high, int(full[-1])), (high, int(full[0]))):
        point = int(between[0]) if len(between) else edge
        yield factor, int(y[point]) - factor * int(x[point])
    first = int(np.flatnonzero(np.diff(y))[0])
    factor = int(y[first + 1] - y[first]) // int(x[first + 1] - x[first])
    yield factor, int(y[first]) - factor * int(x[first])


def table_form(x: IntArray, y: IntArray, source: Input, label: str) -> Sum | None:
    """Make a table `LABEL_by_INPUT` of `y`; one that would hold no positive number is subtracted."""
    if source.size > MAX_TABLE:
        return None
    sign = -1 if int(y.max()) <= 0 else 1
    entries = tuple(zip(x.tolist(), (sign * y).tolist(), strict=True))
    draft = TableDraft(f"{label}_by_{source.name}"[:60], source.size, entries)
    return Sum(0, (Term(source.order, sign, lookup_draft(draft, source.name)),))

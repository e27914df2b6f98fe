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
from tranship.schema.folding.terms import Sum, TableDraft, Term, lookup_draft, sum_expression

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
    small = abs(factor) * (int(np.abs(base).max()) + 1) + int(np.abs(y).max()) < LIMIT
    return factor if not remainder and small and np.array_equal(dy, factor * dx) else None


def closed_form(x: IntArray, y: IntArray, source: Input) -> Sum | None:
    """Fit chunks, `a * x + b`, `a * (x // n) + b`, `a * (x % n) + b`, or a clamped line.

    In this order; chunks and clamped lines only where `source` saturates.
    """
    if source.saturates:
        chunks = _chunks(x, y, source)
        if chunks:
            return chunks
    for base, values in bases(x, source.name):
        factor = slope(y, values)
        if factor is not None:
            constant = int(y[0]) - factor * int(values[0])
            return Sum(constant, (Term(source.order, factor, base),))
    return _clamped_line(x, y, source) if source.saturates else None


def _chunks(x: IntArray, y: IntArray, source: Input) -> Sum | None:
    """Fit `max(min(high, size - x * high), 0)`: `size` elements in chunks of `high`.

    `size` follows from the first chunk that is neither full nor empty; without one it ends with
    the last full chunk.
    """
    low, high = int(y.min()), int(y.max())
    if low < 0 or low == high:
        return None
    partial = np.flatnonzero((0 < y) & (y < high))
    point = int(partial[0]) if len(partial) else int(np.flatnonzero(y == high)[-1])
    return _clamp(x, y, source, -high, point, (0, high))


def _clamped_line(x: IntArray, y: IntArray, source: Input) -> Sum | None:
    """Fit the line through the first two neighbours that differ, kept within the values of `y`."""
    first = int(np.flatnonzero(np.diff(y))[0])
    factor, remainder = divmod(int(y[first + 1] - y[first]), int(x[first + 1] - x[first]))
    bounds = int(y.min()), int(y.max())
    return None if remainder else _clamp(x, y, source, factor, first, bounds)


def _clamp(
    x: IntArray, y: IntArray, source: Input, factor: int, point: int, bounds: tuple[int, int]
) -> Sum | None:
    """Fit the line with slope `factor` through one point, kept within the bounds."""
    constant = int(y[point]) - factor * int(x[point])
    if abs(factor) * (int(x[-1]) + 1) + abs(constant) >= LIMIT:
        return None
    line = factor * x + constant
    if not np.array_equal(np.clip(line, *bounds), y):
        return None
    inner = Sum(constant, (Term(source.order, factor, Variable(source.name)),))
    expression = sum_expression(inner)
    if int(line.max()) > bounds[1]:
        expression = Operation("min", Constant(bounds[1]), expression)
    if int(line.min()) < bounds[0]:
        expression = Operation("max", expression, Constant(bounds[0]))
    clamped = isinstance(expression, Operation) and expression.operator in ("min", "max")
    return Sum(0, (Term(source.order, 1, expression),)) if clamped else inner


def table_form(x: IntArray, y: IntArray, source: Input, label: str) -> Sum | None:
    """Make a table of `y`.

    It is called `LABEL_by_INPUT`, or `local_LABEL` where it turns an index into a local one.
    """
    if source.size > MAX_TABLE:
        return None
    entries = tuple(zip(x.tolist(), y.tolist(), strict=True))
    name = f"local_{label}" if label == source.name else f"{label}_by_{source.name}"
    draft = TableDraft(name[:60], source.size, entries)
    return Sum(0, (Term(source.order, 1, lookup_draft(draft, source.name)),))

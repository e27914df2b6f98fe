"""Arithmetic on expressions that folds what is known: constants, multiples, and bounded names.

Every result equals the plain operation wherever the names lie within their ranges; it is only
shorter, so that a manifest says `tp * 512` and not `min(tp * 8 // 4 * 256, 4096)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tranship.schema.expression import (
    Constant,
    Expression,
    ExpressionError,
    IntArray,
    Interval,
    Lookup,
    Operation,
    Variable,
    interval,
    simplify,
)


@dataclass(frozen=True)
class Ranges:
    """Smallest and largest value of every axis and index, and the tables."""

    names: Mapping[str, Interval]
    tables: Mapping[str, IntArray]

    def bounds(self, expression: Expression) -> Interval | None:
        """Bound an expression, if all its names are known."""
        try:
            return interval(expression, self.names, self.tables)
        except ExpressionError:
            return None


def combine(symbol: str, left: Expression, right: Expression, ranges: Ranges) -> Expression:
    """Apply one of `+ - * // % min max` and fold the result.

    Args:
        symbol: The operation.
        left: Its left side.
        right: Its right side; of `//` and `%` a positive constant.
        ranges: The values that names may have.

    Raises:
        ExpressionError: the right side of `//` or `%` is no positive constant.
    """
    if symbol in ("+", "*") and isinstance(left, Constant):
        left, right = right, left
    if symbol in ("//", "%") and not (isinstance(right, Constant) and right.value > 0):
        raise ExpressionError(f"the right side of {symbol} must be a positive number")
    plain = simplify(Operation(symbol, left, right))
    if not isinstance(plain, Operation):
        return plain
    bounds = ranges.bounds(plain)
    if bounds and bounds[0] == bounds[1]:
        return Constant(bounds[0])
    match plain:
        case Operation("+" | "-", _, Constant(value)):
            return _shift(plain.left, value if plain.operator == "+" else -value)
        case Operation("*", inner, Constant(value)):
            return _scale(inner, value)
        case Operation("//", inner, Constant(value)):
            return _divide(inner, value, ranges)
        case Operation("%", inner, Constant(value)):
            return _remainder(inner, value, ranges)
        case Operation("min" | "max"):
            return _pick(plain, ranges)
        case _:
            return plain


def _shift(inner: Expression, by: int) -> Expression:
    match inner:
        case Operation("+", rest, Constant(value)):
            by, inner = by + value, rest
        case Operation("-", rest, Constant(value)):
            by, inner = by - value, rest
        case _:
            pass
    if by == 0:
        return inner
    return Operation("+" if by > 0 else "-", inner, Constant(abs(by)))


def _scale(inner: Expression, by: int) -> Expression:
    match inner:
        case Operation("*", rest, Constant(value)):
            return simplify(Operation("*", rest, Constant(value * by)))
        case _:
            return Operation("*", inner, Constant(by))


def _divide(inner: Expression, by: int, ranges: Ranges) -> Expression:
    match inner:
        case Operation("*", rest, Constant(value)) if value % by == 0:
            return combine("*", rest, Constant(value // by), ranges)
        case Operation("*", rest, Constant(value)) if value > 0 and by % value == 0:
            return combine("//", rest, Constant(by // value), ranges)
        case Operation("//", rest, Constant(value)):
            return combine("//", rest, Constant(value * by), ranges)
        case Operation("+" | "-" as symbol, first, second) if is_multiple(second, by):
            parts = [combine("//", part, Constant(by), ranges) for part in (first, second)]
            return combine(symbol, parts[0], parts[1], ranges)
        case Operation("+", first, second) if is_multiple(first, by):
            parts = [combine("//", part, Constant(by), ranges) for part in (first, second)]
            return combine("+", parts[0], parts[1], ranges)
        case Operation("min" | "max" as symbol, first, second):
            parts = [combine("//", part, Constant(by), ranges) for part in (first, second)]
            return combine(symbol, parts[0], parts[1], ranges)
        case _:
            return Operation("//", inner, Constant(by))


def _remainder(inner: Expression, by: int, ranges: Ranges) -> Expression:
    if is_multiple(inner, by):
        return Constant(0)
    bounds = ranges.bounds(inner)
    if bounds and bounds[0] // by == bounds[1] // by:
        return combine("-", inner, Constant(bounds[0] // by * by), ranges)
    match inner:
        case Operation("*", rest, Constant(value)) if value > 0 and by % value == 0:
            return combine(
                "*", combine("%", rest, Constant(by // value), ranges), Constant(value), ranges
            )
        case _:
            return Operation("%", inner, Constant(by))


def _pick(plain: Operation, ranges: Ranges) -> Expression:
    difference = ranges.bounds(combine("-", plain.left, plain.right, ranges))
    ends = ranges.bounds(plain.left), ranges.bounds(plain.right)
    if ends[0] and ends[1] and not difference:
        difference = ends[0][0] - ends[1][1], ends[0][1] - ends[1][0]
    if difference and (difference[1] <= 0 or difference[0] >= 0):
        left_is_less = difference[1] <= 0
        return plain.left if left_is_less == (plain.operator == "min") else plain.right
    return plain


def is_multiple(expression: Expression, of: int) -> bool:
    """Whether the expression is seen to be a multiple of `of`; False where it may not be one."""
    match expression:
        case Constant(value):
            return value % of == 0
        case Variable() | Lookup():
            return of == 1
        case Operation("*", left, right):
            return is_multiple(left, of) or is_multiple(right, of)
        case Operation("+" | "-" | "min" | "max", left, right):
            return is_multiple(left, of) and is_multiple(right, of)
        case Operation():
            return of == 1


def substituted(
    expression: Expression, values: Mapping[str, Expression], ranges: Ranges
) -> Expression:
    """Replace names by expressions and fold the result."""
    match expression:
        case Constant():
            return expression
        case Variable(name):
            return values.get(name, expression)
        case Lookup(table, index):
            return Lookup(table, substituted(index, values, ranges))
        case Operation(symbol, left, right):
            return combine(
                symbol,
                substituted(left, values, ranges),
                substituted(right, values, ranges),
                ranges,
            )

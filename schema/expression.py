"""Integer expressions over indices and mesh axes: parse, print, evaluate, bound."""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

MAX_LENGTH = 512
"""Longest expression text that is accepted, in characters."""

LIMIT = 2**62
"""Every value that an expression may take lies strictly between -LIMIT and LIMIT."""

IntArray = NDArray[np.int64]
Value = int | IntArray
Interval = tuple[int, int]


class ExpressionError(ValueError):
    """An expression that does not parse, or that has no value where it is evaluated."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal integer."""

    value: int


@dataclass(frozen=True, slots=True)
class Variable:
    """An index of a family, a mesh axis, or `rank`."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One of `+ - * // % min max` on two operands; `//` and `%` round towards minus infinity."""

    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Lookup:
    """Entry `index` of a named one-dimensional table."""

    table: str
    index: "Expression"


Expression = Constant | Variable | Operation | Lookup

_SYMBOLS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
}
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "//": 2, "%": 2, "min": 9, "max": 9}


@lru_cache(maxsize=65536)
def parse(text: str | int) -> Expression:
    """Parse `text`, an integer or an expression of at most `MAX_LENGTH` characters.

    Raises:
        ExpressionError: `text` is not in the grammar of docs/format.md.
    """
    if isinstance(text, int):
        return Constant(text)
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(text.strip(), mode="eval")
        return _convert(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ExpressionError(reason) from None


def _convert(node: ast.expr) -> Expression:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return Constant(value)
        case ast.Name(id=name):
            return Variable(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return Constant(-value)
        case ast.Subscript(value=ast.Name(id=table), slice=index):
            return Lookup(table, _convert(index))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=[left, right], keywords=[]):
            return Operation(name, _convert(left), _convert(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SYMBOLS:
            return _binary(_SYMBOLS[type(op)], _convert(left), _convert(right))
        case _:
            raise ExpressionError(f"{type(node).__name__.lower()} is not allowed here")


def _binary(symbol: str, left: Expression, right: Expression) -> Expression:
    if symbol in ("//", "%") and not (isinstance(right, Constant) and right.value > 0):
        raise ExpressionError(f"the right side of {symbol} must be a positive literal")
    return Operation(symbol, left, right)


def to_text(expression: Expression) -> str | int:
    """Print the canonical form: an integer for a constant, else text with fewest parentheses."""
    return (
        expression.value if isinstance(expression, Constant) else _print(expression, 0, right=False)
    )


def _print(node: Expression, outer: int, *, right: bool) -> str:
    match node:
        case Constant(value):
            return f"({value})" if value < 0 and outer else str(value)
        case Variable(name):
            return name
        case Lookup(table, index):
            return f"{table}[{_print(index, 0, right=False)}]"
        case Operation("min" | "max" as name, left, operand):
            return f"{name}({_print(left, 0, right=False)}, {_print(operand, 0, right=False)})"
        case Operation(symbol, left, operand):
            level = _PRECEDENCE[symbol]
            inner = (
                f"{_print(left, level, right=False)} {symbol} {_print(operand, level, right=True)}"
            )
            return f"({inner})" if level < outer or (level == outer and right) else inner


@lru_cache(maxsize=65536)
def variables(expression: Expression) -> frozenset[str]:
    """Names of the indices and axes that `expression` reads."""
    match expression:
        case Constant():
            return frozenset()
        case Variable(name):
            return frozenset({name})
        case Lookup(_, index):
            return variables(index)
        case Operation(_, left, right):
            return variables(left) | variables(right)


def tables(expression: Expression) -> frozenset[str]:
    """Names of the tables that `expression` reads."""
    match expression:
        case Constant() | Variable():
            return frozenset()
        case Lookup(table, index):
            return tables(index) | {table}
        case Operation(_, left, right):
            return tables(left) | tables(right)


def substitute(expression: Expression, replacements: Mapping[str, Expression]) -> Expression:
    """Replace variables by expressions."""
    match expression:
        case Constant():
            return expression
        case Variable(name):
            return replacements.get(name, expression)
        case Lookup(table, index):
            return Lookup(table, substitute(index, replacements))
        case Operation(symbol, left, right):
            return simplify(
                Operation(symbol, substitute(left, replacements), substitute(right, replacements))
            )


_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "min": np.minimum,
    "max": np.maximum,
}


def simplify(expression: Expression) -> Expression:
    """Fold constants and drop neutral elements (`x + 0`, `x * 1`, `0 * x`), nothing more."""
    if not isinstance(expression, Operation):
        return expression
    symbol, left, right = expression.operator, expression.left, expression.right
    match symbol, left, right:
        case _, Constant(a), Constant(b):
            return Constant(int(_FUNCTIONS[symbol](a, b)))
        case ("+", Constant(0), other) | ("+" | "-", other, Constant(0)):
            return other
        case ("*", Constant(1), other) | ("*" | "//", other, Constant(1)):
            return other
        case ("*", Constant(0), _) | ("*", _, Constant(0)) | ("%", _, Constant(1)):
            return Constant(0)
        case "min" | "max", _, _ if left == right:
            return left
        case _:
            return expression


def evaluate(
    expression: Expression,
    environment: Mapping[str, Value],
    lookup: Mapping[str, IntArray],
) -> Value:
    """Evaluate with the operands' numpy broadcasting.

    Args:
        expression: What to evaluate.
        environment: A value for each variable: an int or an int64 array.
        lookup: The tables, int64 and one-dimensional.

    Raises:
        ExpressionError: an unknown variable or table, or an index outside its table.
    """
    match expression:
        case Constant(value):
            return value
        case Variable(name):
            if name not in environment:
                raise ExpressionError(f"unknown name {name!r}")
            return environment[name]
        case Lookup(table, index):
            return _look_up(table, evaluate(index, environment, lookup), lookup)
        case Operation(symbol, left, right):
            first = evaluate(left, environment, lookup)
            second = evaluate(right, environment, lookup)
            result = _FUNCTIONS[symbol](first, second)
            return cast("Value", result if isinstance(result, np.ndarray) else int(result))


def _look_up(table: str, index: Value, lookup: Mapping[str, IntArray]) -> Value:
    if table not in lookup:
        raise ExpressionError(f"unknown table {table!r}")
    values = lookup[table]
    low, high = (int(np.min(index)), int(np.max(index))) if np.size(index) else (0, 0)
    if np.size(index) and not (0 <= low <= high < len(values)):
        raise ExpressionError(
            f"{table}[{low if low < 0 else high}] is outside its {len(values)} entries"
        )
    return values[index] if isinstance(index, np.ndarray) else int(values[index])


def interval(
    expression: Expression,
    ranges: Mapping[str, Interval],
    lookup: Mapping[str, IntArray],
) -> Interval:
    """Bound the values of `expression` from below and above, in exact Python integers.

    Raises:
        ExpressionError: an unknown name, an index that may leave its table, or a bound that is
            LIMIT or more.
    """
    bounds = _interval(expression, ranges, lookup)
    if not (-LIMIT < bounds[0] <= bounds[1] < LIMIT):
        raise ExpressionError("the value may not fit in 63 bits")
    return bounds


def _interval(
    expression: Expression, ranges: Mapping[str, Interval], lookup: Mapping[str, IntArray]
) -> Interval:
    match expression:
        case Constant(value):
            return value, value
        case Variable(name):
            if name not in ranges:
                raise ExpressionError(f"unknown name {name!r}")
            return ranges[name]
        case Lookup(table, index):
            low, high = interval(index, ranges, lookup)
            ends = np.array([low, high], dtype=np.int64)
            _look_up(table, ends, lookup)
            inside = lookup[table][low : high + 1]
            return int(inside.min()), int(inside.max())
        case Operation(symbol, left, right):
            first, second = interval(left, ranges, lookup), interval(right, ranges, lookup)
            return _combine(symbol, first, second)


def _combine(symbol: str, first: Interval, second: Interval) -> Interval:
    match symbol:
        case "-":
            return first[0] - second[1], first[1] - second[0]
        case "%":
            same_cycle = first[0] // second[0] == first[1] // second[0]
            return (
                (first[0] % second[0], first[1] % second[0]) if same_cycle else (0, second[0] - 1)
            )
        case "min" | "max":
            pick = min if symbol == "min" else max
            return pick(first[0], second[0]), pick(first[1], second[1])
        case _:
            ends = [int(_FUNCTIONS[symbol](a, b)) for a in first for b in second]
            return min(ends), max(ends)

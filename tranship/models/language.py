"""The expressions of architecture and layout files, evaluated as far as they can be.

Sizes of the model and options of the framework are known numbers; axes and indices are not. What
depends on known names alone becomes a number, truth value, text or list; arithmetic on the others
becomes an expression of a manifest.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import cast

from tranship.models.algebra import Ranges, combine
from tranship.schema.expression import Constant, Expression, ExpressionError, Lookup


@dataclass(frozen=True)
class Table:
    """A list that has a name in the manifest."""

    name: str
    values: tuple[int, ...]


Value = int | float | str | None | Table | Expression | tuple["Value", ...]
"""What an expression of a data file may evaluate to; truth values are ints."""

Names = Mapping[str, Value]


class LanguageError(ValueError):
    """An expression of a data file that has no value."""


class NotDivisibleError(LanguageError):
    """A division that a layout needs to be exact, and that leaves a remainder."""


@dataclass(frozen=True)
class _Layered(Mapping[str, Value]):
    """Names over other names, none of which is asked for its value before it is needed."""

    upper: Names
    lower: Names

    def __getitem__(self, name: str) -> Value:
        return self.upper[name] if name in self.upper else self.lower[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.upper, *self.lower]))

    def __len__(self) -> int:
        return len({*self.upper, *self.lower})

    def __contains__(self, name: object) -> bool:
        return name in self.upper or name in self.lower


@dataclass(frozen=True)
class Scope:
    """What names mean where an expression stands, and the ranges of those that stay names."""

    names: Names
    ranges: Ranges

    def plus(self, names: Names) -> "Scope":
        """The same scope with more names, which hide others."""
        return replace(self, names=_Layered(names, self.names))


def evaluate(text: str | int, scope: Scope) -> Value:
    """Evaluate an expression of a data file.

    Raises:
        LanguageError: it does not parse, or has no value.
    """
    if isinstance(text, int):
        return int(text)
    try:
        return _value(_parse(text), scope)
    except ExpressionError as error:
        raise LanguageError(f"{text!r}: {error}") from None
    except LanguageError as error:
        if isinstance(error, NotDivisibleError):
            raise
        raise LanguageError(f"{text!r}: {error}") from None


def holds(text: str | int, scope: Scope) -> bool:
    """Whether a condition holds.

    Raises:
        LanguageError: it does not parse, or depends on an axis or an index.
    """
    value = evaluate(text, scope)
    if not isinstance(value, int):
        raise LanguageError(f"{text!r} is not known to be true or false")
    return value != 0


def number(text: str | int, scope: Scope) -> int:
    """Evaluate what must be a known integer.

    Raises:
        LanguageError: it does not parse, or is none.
    """
    value = evaluate(text, scope)
    if not isinstance(value, int):
        raise LanguageError(f"{text!r} is no known integer")
    return value


def expression(text: str | int, scope: Scope) -> Expression:
    """Evaluate what may depend on axes and indices.

    Raises:
        LanguageError: it does not parse, or is neither an integer nor arithmetic on names.
    """
    return _symbolic(evaluate(text, scope))


@lru_cache(maxsize=4096)
def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise LanguageError(f"{text!r}: {error.msg}") from None


def _value(node: ast.expr, scope: Scope) -> Value:
    match node:
        case ast.Constant(value=bool(value)):
            return int(value)
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.Name(id=name):
            return _lookup(name, scope)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return tuple(_value(item, scope) for item in items)
        case ast.Subscript(value=of, slice=index):
            return _element(_value(of, scope), _value(index, scope), scope)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return int(not _known(_value(operand, scope)))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _arithmetic("-", 0, _value(operand, scope), scope)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SYMBOLS:
            return _arithmetic(_SYMBOLS[type(op)], _value(left, scope), _value(right, scope), scope)
        case _:
            return _logic(node, scope)


def _logic(node: ast.expr, scope: Scope) -> Value:
    match node:
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _known(_value(test, scope)) else orelse, scope)
        case ast.BoolOp(op=op, values=parts):
            stop = isinstance(op, ast.Or)
            return int(stop == any(bool(_known(_value(p, scope))) == stop for p in parts))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_known(_value(item, scope)) for item in (left, *others)]
            pairs = zip(ops, values, values[1:], strict=False)
            return int(all(_compare(op, a, b) for op, a, b in pairs))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _call(name, arguments, scope)
        case _:
            raise LanguageError(f"{type(node).__name__.lower()} is not allowed here")


def _compare(op: ast.cmpop, left: Value, right: Value) -> bool:
    if type(op) not in _COMPARISONS:
        raise LanguageError(f"{type(op).__name__.lower()} is not allowed here")
    try:
        return _COMPARISONS[type(op)](left, right)
    except TypeError:
        raise LanguageError(f"{left!r} and {right!r} cannot be compared") from None


_SYMBOLS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
}

_COMPARISONS: dict[type[ast.cmpop], Callable[[object, object], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: cast(int, a) < cast(int, b),
    ast.LtE: lambda a, b: cast(int, a) <= cast(int, b),
    ast.Gt: lambda a, b: cast(int, a) > cast(int, b),
    ast.GtE: lambda a, b: cast(int, a) >= cast(int, b),
    ast.In: lambda a, b: a in cast("Sequence[object]", b),
    ast.NotIn: lambda a, b: a not in cast("Sequence[object]", b),
}


def _lookup(name: str, scope: Scope) -> Value:
    if name not in scope.names:
        raise LanguageError(f"there is no {name!r} here")
    return scope.names[name]


def _known(value: Value) -> Value:
    if isinstance(value, Expression):
        raise LanguageError("a condition cannot depend on an axis or an index")
    return value


def _symbolic(value: Value) -> Expression:
    if isinstance(value, int):
        return Constant(int(value))
    if isinstance(value, Expression):
        return value
    raise LanguageError(f"{value!r} is no integer")


def _concrete(result: Expression) -> Value:
    return result.value if isinstance(result, Constant) else result


def _element(of: Value, index: Value, scope: Scope) -> Value:
    values = of.values if isinstance(of, Table) else of
    if not isinstance(values, tuple):
        raise LanguageError("only a list has elements")
    if isinstance(index, int):
        if not 0 <= index < len(values):
            raise LanguageError(f"element {index} is outside a list of {len(values)}")
        return values[index]
    if not isinstance(of, Table):
        raise LanguageError("the element of a list without a name must be known")
    return closed_form(of, _symbolic(index), scope.ranges)


def _arithmetic(symbol: str, left: Value, right: Value, scope: Scope) -> Value:
    if isinstance(left, float) or isinstance(right, float):
        raise LanguageError("fractions can only be used in scaled(number, fraction)")
    if symbol == "+" and isinstance(left, str) and isinstance(right, str):
        return left + right
    if symbol == "+" and isinstance(left, tuple) and isinstance(right, tuple):
        return left + right
    if symbol == "*" and isinstance(left, tuple) and isinstance(right, int):
        return left * right
    return _concrete(combine(symbol, _symbolic(left), _symbolic(right), scope.ranges))


def _call(name: str, nodes: Sequence[ast.expr], scope: Scope) -> Value:
    arguments = [_value(node, scope) for node in nodes]
    match name, arguments:
        case "min" | "max", [left, right]:
            return _arithmetic(name, left, right, scope)
        case "ceil", [left, right]:
            above = _arithmetic("+", left, _arithmetic("-", right, 1, scope), scope)
            return _arithmetic("//", above, right, scope)
        case "divide", [left, right]:
            texts = [ast.unparse(node) for node in nodes]
            return _divide(left, right, texts, scope)
        case "scaled", [int(left), int() | float() as right]:
            return int(left * right)
        case "len", [tuple(values)]:
            return len(values)
        case "sum", [tuple(values)]:
            return sum(_integers(values))
        case "part", [int(position), tuple(sizes)]:
            ends = accumulate(_integers(sizes))
            return sum(end <= position for end in ends)
        case "before", [int(place), tuple(sizes)]:
            return sum(_integers(sizes)[:place])
        case _:
            raise LanguageError(f"{name} cannot be used here, or not like this")


def _integers(values: Sequence[Value]) -> list[int]:
    if not all(isinstance(value, int) for value in values):
        raise LanguageError("a list of integers is needed")
    return [cast(int, value) for value in values]


def _divide(left: Value, right: Value, texts: Sequence[str], scope: Scope) -> Value:
    if isinstance(left, int) and isinstance(right, int) and (right < 1 or left % right):
        said = [
            text if text == str(value) else f"{text} = {value}"
            for text, value in zip(texts, (left, right), strict=True)
        ]
        raise NotDivisibleError(f"{said[0]} is not divisible by {said[1]}")
    return _arithmetic("//", left, right, scope)


def closed_form(table: Table, index: Expression, ranges: Ranges) -> Value:
    """Return the element of a table: `(index + a) // b` or `% b` where that is what it lists."""
    found = _arithmetic_form(table.values)
    if found is None:
        return Lookup(table.name, index)
    shift, symbol, by = found
    shifted = combine("+", index, Constant(shift), ranges)
    return _concrete(combine(symbol, shifted, Constant(by), ranges))


@lru_cache(maxsize=1024)
def _arithmetic_form(values: tuple[int, ...]) -> tuple[int, str, int] | None:
    count = len(values)
    for by in range(1, count + 2):
        for shift in range(by):
            if all(value == (place + shift) // by for place, value in enumerate(values)):
                return shift, "//", by
            if all(value == (place + shift) % by for place, value in enumerate(values)):
                return shift, "%", by
    return None

"""Index notation: which part of a tensor or a buffer, `[tp * 2048 + 0..2047, :]`.

`a..b` includes its last member, `a..b:s` goes in steps of `s`, `0..<n` ends before `n`, `:` is the
whole dim, and `x + 0..3` is `x..x+3`. Where a region is no box of its buffer, its elements are
written as a sum: `elements 7 + 0..63 * 2`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tranship.schema.expression import (
    Constant,
    Expression,
    Operation,
    parse,
    simplify,
    to_text,
)
from tranship.schema.manifest import IntExpression

Sizes = tuple[int | None, ...]
"""The number of elements of every dim; None where it is not known."""


def box_text(
    start: Sequence[IntExpression],
    extent: Sequence[IntExpression],
    step: Sequence[int] | None,
    shape: Sequence[int | None],
) -> str:
    """Write the box of a tensor of `shape`, dim by dim."""
    steps = step or (1,) * len(start)
    dims = zip(start, extent, steps, shape, strict=True)
    return f"[{', '.join(_range(parse(a), parse(n), s, size) for a, n, s, size in dims)}]"


def is_whole(
    start: Sequence[IntExpression], extent: Sequence[IntExpression], shape: Sequence[int]
) -> bool:
    """Whether a box is all of its tensor."""
    return all(parse(a) == Constant(0) for a in start) and all(
        parse(n) == Constant(size) for n, size in zip(extent, shape, strict=True)
    )


def _range(start: Expression, extent: Expression, step: int, size: int | None) -> str:
    by = "" if step == 1 else f":{step}"
    match start, extent:
        case Constant(0), Constant(n) if n == size and step == 1:
            return ":"
        case _, Constant(1):
            return str(to_text(start))
        case Constant(a), Constant(n):
            return f"{a}..{a + (n - 1) * step}{by}" if n > 0 else "none"
        case _, Constant(n):
            return f"{to_text(start)} + 0..{(n - 1) * step}{by}"
        case _:
            inner = f"0..<{to_text(extent)}"
            inner = inner if step == 1 else f"({inner}) * {step}"
            return inner if start == Constant(0) else f"{to_text(start)} + {inner}"


@dataclass(frozen=True)
class View:
    """The dims of a buffer, or as many of them as can be told: strides in elements, and sizes."""

    strides: tuple[int, ...]
    sizes: Sizes


@dataclass(frozen=True)
class _Linear:
    """`constant` plus the sum of factor times term."""

    constant: int
    terms: Mapping[Expression, int]

    def expression(self) -> Expression:
        """Write the sum: what is added before what is subtracted, the constant last."""
        parts: list[tuple[Expression, int]] = [
            (Operation("*", base, Constant(abs(factor))), factor)
            for base, factor in self.terms.items()
        ]
        parts.append((Constant(abs(self.constant)), self.constant))
        result: Expression = Constant(0)
        for part, _ in (one for one in parts if one[1] > 0):
            result = simplify(Operation("+", result, simplify(part)))
        for part, _ in (one for one in parts if one[1] < 0):
            result = simplify(Operation("-", result, simplify(part)))
        return result


def _linear(expression: Expression, factor: int = 1) -> _Linear:
    match expression:
        case Constant(value):
            return _Linear(value * factor, {})
        case Operation("+" | "-" as sign, left, right):
            first, second = (
                _linear(left, factor),
                _linear(right, -factor if sign == "-" else factor),
            )
            terms = dict(first.terms)
            for base, more in second.terms.items():
                terms[base] = terms.get(base, 0) + more
            return _Linear(first.constant + second.constant, terms)
        case Operation("*", inner, Constant(more)) | Operation("*", Constant(more), inner):
            return _linear(inner, factor * more)
        case _:
            return _Linear(0, {expression: factor})


def region_text(
    offset: IntExpression,
    extent: Sequence[IntExpression],
    strides: Sequence[IntExpression],
    view: View | None = None,
) -> str:
    """Write a strided region of a buffer by the dims of `view`; without one, by its own strides."""
    start = _linear(parse(offset))
    dims = [(parse(n), parse(s)) for n, s in zip(extent, strides, strict=True)]
    return _boxed(start, dims, view) or _elements(start, dims)


_Dims = Sequence[tuple[Expression, Expression]]


def _elements(start: _Linear, dims: _Dims) -> str:
    parts = [f"{_range(Constant(0), n, 1, None)} * {_factor(s)}" for n, s in dims]
    first = start.expression()
    if first != Constant(0) or not parts:
        parts.insert(0, str(to_text(first)))
    return f"elements {' + '.join(parts)}"


def _factor(stride: Expression) -> str:
    text = str(to_text(stride))
    return f"({text})" if isinstance(stride, Operation) else text


@dataclass(frozen=True)
class _Dim:
    """A dim of a tensor in a buffer: its number there, extent, and stride in elements."""

    number: int
    extent: Expression
    stride: int


def _boxed(start: _Linear, dims: _Dims, view: View | None) -> str | None:
    """Write the region as a box of the view; None if it is none."""
    known = [
        _Dim(number, extent, stride.value)
        for number, (extent, stride) in enumerate(dims)
        if isinstance(stride, Constant)
    ]
    # What has one element needs no stride; yet it may show where the others lie.
    long = [dim for dim in known if dim.extent != Constant(1)]
    if len(long) < sum(extent != Constant(1) for extent, _ in dims):
        return None
    if view:
        return _in_view(start, long, view)
    return next(
        (
            text
            for chosen in (known, long)
            if (own := _own_view(start, chosen)) and (text := _in_view(start, chosen, own))
        ),
        None,
    )


def _in_view(start: _Linear, dims: Sequence[_Dim], view: View) -> str | None:
    first = _coordinates(start, view)
    if first is None:
        return None
    taken: dict[int, _Dim] = {}
    for dim in dims:
        place = _place(dim.stride, view)
        if place is None or place in taken:
            return None
        taken[place] = dim
    texts: list[str] = []
    for place, size in enumerate(view.sizes):
        dim = taken.get(place, _Dim(0, Constant(1), view.strides[place]))
        step = dim.stride // view.strides[place] if place in taken else 1
        if _leaves(first[place], dim.extent, step, size):
            return None
        texts.append(_range(first[place], dim.extent, step, size))
    order = [taken[place].number for place in sorted(taken)]
    return f"[{', '.join(texts)}]{'' if order == sorted(order) else ' transposed'}"


def _own_view(start: _Linear, dims: Sequence[_Dim]) -> View | None:
    """Tell the dims of a buffer from a region: its strides, and larger ones in its offset.

    A term of the offset whose factor is no less than the region's span is an index of an outer dim.
    """
    strides = sorted((dim.stride for dim in dims), reverse=True) or [1]
    spans = (dim.extent.value * dim.stride for dim in dims if isinstance(dim.extent, Constant))
    span = max(spans, default=1)
    outer = {abs(f) for f in start.terms.values() if abs(f) >= span and abs(f) > strides[0]}
    strides = [*sorted(outer, reverse=True), *strides]
    if strides[-1] < 1 or any(high % low or high == low for high, low in pairwise(strides)):
        return None
    sizes = (None, *(high // low for high, low in pairwise(strides)))
    return View(tuple(strides), sizes)


def _coordinates(start: _Linear, view: View) -> list[Expression] | None:
    """Write an offset as one coordinate in every dim of the view."""
    parts: list[dict[Expression, int]] = [{} for _ in view.strides]
    for base, factor in start.terms.items():
        place = _place(factor, view)
        if place is None:
            return None
        parts[place][base] = factor // view.strides[place]
    constants = [0] * len(view.strides)
    rest = start.constant
    for dim in _outermost_first(view):
        constants[dim], rest = divmod(rest, view.strides[dim])
    if rest:
        return None
    return [_Linear(c, terms).expression() for c, terms in zip(constants, parts, strict=True)]


def _outermost_first(view: View) -> list[int]:
    """Positions of the dims by stride; of equal strides, the dim that is not of size 1 leads."""
    dims = [dim for dim, stride in enumerate(view.strides) if stride > 0]
    return sorted(dims, key=lambda dim: (-view.strides[dim], view.sizes[dim] == 1))


def _place(stride: int, view: View) -> int | None:
    fitting = (dim for dim in _outermost_first(view) if stride % view.strides[dim] == 0)
    return next((dim for dim in fitting if view.strides[dim] <= abs(stride)), None)


def _leaves(start: Expression, extent: Expression, step: int, size: int | None) -> bool:
    """Whether a range is seen to go on in the next row."""
    if size is None or not (isinstance(start, Constant) and isinstance(extent, Constant)):
        return False
    return not 0 <= start.value <= start.value + (extent.value - 1) * step < size

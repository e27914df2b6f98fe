"""Derive what all ranks of an engine hold from some of them, and prove it on others.

Ranks of an engine hold the same buffers, but for numbers: shard 3 starts where shard 2 ends, and
its experts are the next ones. Where every number of a declaration is an affine function of a
rank's coordinates, a rank per axis tells all. Whether that is so is not taken for granted: what is
derived is compared with ranks that were traced and from which nothing was derived. Between them
these show all coordinates of a short axis, and of a long one the last, the powers of two and some
in between. An engine that exchanges two others of a long axis, and nothing else, is not noticed.
"""

import re
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from itertools import islice, pairwise
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tranship.runtime.frameworks.tracing.declare import quantization_of
from tranship.schema.indexset import to_text
from tranship.schema.manifest import Axis
from tranship.schema.records import BufferRecord, Declaration, Ints, PieceRecord

T = TypeVar("T")

TRACED = 10
"""How many ranks are traced of many, unless the powers of two are more."""

Numbers = NDArray[np.int64]

Digit = tuple[int, int]
"""A stride and a size: `rank // stride % size`."""


def digits(axes: Iterable[Axis], world_size: int) -> tuple[Digit, ...]:
    """Split ranks into coordinates that do not depend on one another, as fine as axes need it.

    Raises:
        ValueError: axes overlap, so that there are none.
    """
    cuts = {1, world_size}
    for axis in axes:
        cuts |= {axis.stride, axis.stride * axis.size}
    bounds = sorted(cut for cut in cuts if cut <= world_size)
    if any(high % low for low, high in pairwise(bounds)):
        raise ValueError(f"axes with strides and sizes {bounds} do not nest")
    return tuple((low, high // low) for low, high in pairwise(bounds))


def basis(axes: Iterable[Axis], world_size: int) -> Ints:
    """Return the ranks from which all others are derived: the first, and the next on every axis."""
    return (0, *(stride for stride, _ in digits(axes, world_size)))


def proof(axes: Iterable[Axis], world_size: int) -> Ints:
    """Return the ranks that what is derived is compared with: the last, and some in between.

    Each shows a coordinate of every digit. Where a digit has no more to show it begins anew, at a
    pace of its own: digits of one size are not to have the same coordinate on all ranks.
    """
    used, parts = basis(axes, world_size), digits(axes, world_size)
    count = max([TRACED - len(used), *((size - 1).bit_length() for _, size in parts)])
    ranks = [0] * count
    for pace, (stride, size) in enumerate(parts, 1):
        shown = list(islice(_coordinates(size), count))
        shown += [number // pace % size for number in range(len(shown), count)]
        ranks = [rank + stride * coordinate for rank, coordinate in zip(ranks, shown, strict=True)]
    return tuple(sorted({*ranks}.difference(used)))


def _coordinates(size: int) -> Iterator[int]:
    """Yield the last coordinate of a digit, powers of two, and what halves the widest gaps."""
    powers = (1 << bit for bit in range(1, (size - 1).bit_length()))
    first = dict.fromkeys((size - 1, *powers))
    yield from first
    found = sorted({0, 1, *first})
    while True:
        low, high = max(pairwise(found), key=lambda gap: gap[1] - gap[0])
        if high - low == 1:
            return
        yield (low + high) // 2
        insort(found, (low + high) // 2)


def sample(axes: Sequence[Axis], world_size: int) -> Ints:
    """Return the ranks to trace first: all, unless those that tell of all are less than half."""
    try:
        told = {*basis(axes, world_size), *proof(axes, world_size)}
    except ValueError:
        return tuple(range(world_size))
    return tuple(sorted(told)) if 2 * len(told) <= world_size else tuple(range(world_size))


@dataclass(frozen=True, slots=True)
class Pattern:
    """How the numbers of a declaration follow from a rank's coordinates.

    `base` are those of rank 0, `steps` what is added for each step along a digit.
    """

    first: Declaration
    base: Numbers
    steps: tuple[tuple[Digit, Numbers], ...]

    def declaration(self, rank: int) -> Declaration:
        """Derive what a rank holds."""
        numbers = self.base.copy()
        for (stride, size), step in self.steps:
            numbers += rank // stride % size * step
        return _rebuilt(self.first, rank, iter(numbers.tolist()))


def find_pattern(traced: Mapping[int, Declaration]) -> Pattern | None:
    """Find the pattern, or None if the ranks differ in more than numbers, or one is not as derived.

    Args:
        traced: Declarations of one rank each, by rank: those of `basis` and of `proof`.
    """
    first = traced[0]
    skeleton, base = _split(first)
    steps: list[tuple[Digit, Numbers]] = []
    for digit in digits(first.axes, first.world_size):
        other, there = _split(traced[digit[0]])
        if other != skeleton:
            return None
        steps.append((digit, there - base))
    pattern = Pattern(first, base, tuple(steps))
    for rank in proof(first.axes, first.world_size):
        if _comparable(pattern.declaration(rank)) != _comparable(traced[rank]):
            return None
    return pattern


def declare_all(pattern: Pattern, traced: Mapping[int, Declaration]) -> Declaration:
    """Return one declaration of all ranks, which tells the ones that were traced."""
    first = pattern.first
    world = range(first.world_size)
    declarations = [traced.get(rank) or pattern.declaration(rank) for rank in world]
    buffers = tuple(sorted(record for found in declarations for record in found.buffers))
    method = first.quantization.method if first.quantization is not None else None
    framework = first.framework
    if framework is not None:
        framework = framework.model_copy(update={"traced": to_text(sorted(traced))})
    return replace(
        first,
        ranks=tuple(world),
        buffers=buffers,
        framework=framework,
        quantization=quantization_of(method, buffers),
    )


def _comparable(found: Declaration) -> Declaration:
    # Which modules are not quantized, each rank tells only of those that it has weights of.
    return replace(found, quantization=None, tensors=())


def _parts(found: Declaration) -> tuple[BufferRecord, ...]:
    """Return what may differ between ranks, in an order that no number in a name decides."""
    return tuple(
        replace(record, rank=0, pieces=tuple(sorted(record.pieces, key=_place)))
        for record in found.buffers
    )


def _place(piece: PieceRecord) -> tuple[object, ...]:
    return piece.offset, piece.part, piece.extent, piece.strides


_NUMBER = re.compile(r"(?<!\d)(0|[1-9]\d{0,14})(?!\d)")


def _leaves(value: object) -> Iterator[str | int]:
    """Yield numbers as they are, also those in texts, and everything else as texts."""
    if isinstance(value, Enum | bool) or value is None:
        yield repr(value)
    elif isinstance(value, int):
        yield value
    elif isinstance(value, str):
        for index, text in enumerate(_NUMBER.split(value)):
            yield int(text) if index % 2 else text
    elif isinstance(value, tuple):
        items = cast("tuple[object, ...]", value)
        yield f"{len(items)} items"
        for item in items:
            yield from _leaves(item)
    else:
        for field in fields(cast("Any", value)):
            yield from _leaves(getattr(value, field.name))


def _with(value: T, numbers: Iterator[int]) -> T:
    """Return a value with other numbers in place of those that `_leaves` yields."""
    if isinstance(value, Enum | bool) or value is None:
        return value
    if isinstance(value, int):
        return cast("T", next(numbers))
    if isinstance(value, str):
        parts = _NUMBER.split(value)
        parts[1::2] = [str(next(numbers)) for _ in parts[1::2]]
        return cast("T", "".join(parts))
    if isinstance(value, tuple):
        items = cast("tuple[object, ...]", value)
        return cast("T", tuple(_with(item, numbers) for item in items))
    record = cast("Any", value)
    changed = {field.name: _with(getattr(record, field.name), numbers) for field in fields(record)}
    return cast("T", type(record)(**changed))


def _split(found: Declaration) -> tuple[list[str | None], Numbers]:
    """Return everything but the numbers, and the numbers."""
    leaves = list(_leaves(_parts(found)))
    skeleton = [None if isinstance(leaf, int) else leaf for leaf in leaves]
    return skeleton, np.array([leaf for leaf in leaves if isinstance(leaf, int)], np.int64)


def _rebuilt(first: Declaration, rank: int, numbers: Iterator[int]) -> Declaration:
    buffers = [
        replace(record, rank=rank, pieces=tuple(sorted(record.pieces)))
        for record in _with(_parts(first), numbers)
    ]
    return replace(first, ranks=(rank,), buffers=tuple(sorted(buffers)))

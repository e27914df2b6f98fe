"""Derive what all ranks of an engine hold from some of them, and prove it on others.

Ranks of an engine hold the same buffers, but for numbers: shard 3 starts where shard 2 ends, and
its experts are the next ones. Where every number of a declaration is an affine function of a
rank's coordinates, a rank per axis tells all. Whether that is so is not taken for granted: what is
derived is compared with ranks that were traced and from which nothing was derived.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from enum import Enum
from itertools import pairwise
from typing import Any, TypeVar, cast

from tranship.schema.manifest import Axis
from tranship.schema.records import BufferRecord, Declaration, Ints, PieceRecord

T = TypeVar("T")

FURTHER = 4
"""Ranks besides the last one that are traced to prove what is derived."""

Digit = tuple[int, int]
"""A stride and a size: `rank // stride % size`."""


def digits(axes: Iterable[Axis], world_size: int) -> tuple[Digit, ...]:
    """Split ranks into coordinates that do not depend on one another, as fine as axes need it."""
    cuts = {1, world_size}
    for axis in axes:
        cuts |= {axis.stride, axis.stride * axis.size}
    bounds = sorted(cut for cut in cuts if cut <= world_size)
    return tuple((low, high // low) for low, high in pairwise(bounds))


def basis(axes: Iterable[Axis], world_size: int) -> Ints:
    """Return the ranks from which all others are derived: the first, and the next on every axis."""
    return (0, *(stride for stride, _ in digits(axes, world_size)))


def proof(axes: Iterable[Axis], world_size: int) -> Ints:
    """Return the ranks that what is derived is compared with: the last, and some in between."""
    used = basis(axes, world_size)
    steps = range(1, FURTHER + 1)
    spread = (number * (world_size - 1) // FURTHER + (number % 2) for number in steps)
    found = {min(rank, world_size - 1) for rank in spread} | {world_size - 1}
    return tuple(sorted(found.difference(used)))


def extrapolate(traced: Mapping[int, Declaration], rank: int) -> Declaration | None:
    """Derive a rank's declaration from those of the basis; None if more than numbers differ there.

    Args:
        traced: Declarations of one rank each, by rank: at least those of `basis`.
        rank: The rank.
    """
    first = traced[0]
    skeleton, base = _split(first)
    wanted = list(base)
    for stride, size in digits(first.axes, first.world_size):
        other, there = _split(traced[stride])
        if other != skeleton:
            return None
        by = rank // stride % size
        moved = zip(wanted, base, there, strict=True)
        wanted = [now + by * (end - start) for now, start, end in moved]
    return _rebuilt(first, rank, iter(wanted))


def derive_all(traced: Mapping[int, Declaration]) -> tuple[Declaration, ...] | None:
    """Return all ranks' declarations, or None if a rank that was traced is not as is derived.

    Args:
        traced: Declarations of one rank each, by rank: those of `basis` and of `proof`.
    """
    first = traced[0]
    world = range(first.world_size)
    for rank in proof(first.axes, first.world_size):
        derived = extrapolate(traced, rank)
        if derived is None or _comparable(derived) != _comparable(traced[rank]):
            return None
    found = [traced.get(rank) or extrapolate(traced, rank) for rank in world]
    return tuple(declaration for declaration in found if declaration is not None)


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


_NUMBER = re.compile(r"(?<!\d)(0|[1-9]\d*)(?!\d)")


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


def _split(found: Declaration) -> tuple[list[str | None], list[int]]:
    """Return everything but the numbers, and the numbers."""
    leaves = list(_leaves(_parts(found)))
    skeleton = [None if isinstance(leaf, int) else leaf for leaf in leaves]
    return skeleton, [leaf for leaf in leaves if isinstance(leaf, int)]


def _rebuilt(first: Declaration, rank: int, numbers: Iterator[int]) -> Declaration:
    buffers = [
        replace(record, rank=rank, pieces=tuple(sorted(record.pieces)))
        for record in _with(_parts(first), numbers)
    ]
    return replace(first, ranks=(rank,), buffers=tuple(sorted(buffers)))

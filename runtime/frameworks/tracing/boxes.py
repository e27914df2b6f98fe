"""Boxes of row-major tensors, found from the offset, sizes and strides of views alone.

A copy from one view to another relates two flat memories: element `k` of the copy reads at
`offset + sum(k * strides)` of the one view and writes there of the other. Everything here is exact
integer arithmetic on such pairs; no element is ever listed.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from tranship.schema.records import Ints, contiguous_strides

MAX_BOXES = 65_536
"""Most boxes that one view may fall into; beyond it a view counts as not made of boxes."""


@dataclass(frozen=True, slots=True)
class View:
    """Elements `offset + sum(k * strides)` of a flat memory, for every `0 <= k < sizes`."""

    offset: int
    sizes: Ints
    strides: Ints


@dataclass(frozen=True, slots=True)
class Box:
    """Elements `start + step * k` of a tensor, `0 <= k < extent` per dim, and where they lie.

    Element `k` lies at `offset + sum(k * strides)` of another flat memory. A dim of extent 1 has
    step 1 and stride 0.
    """

    start: Ints
    extent: Ints
    step: Ints
    offset: int
    strides: Ints

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.extent)

    @property
    def last(self) -> Ints:
        """The box's largest index per dim."""
        ends = zip(self.start, self.extent, self.step, strict=True)
        return tuple(start + (extent - 1) * step for start, extent, step in ends)


@dataclass(frozen=True, slots=True)
class _Loop:
    """One dim of a copy: `extent` elements, `stride` apart here and `other` apart there."""

    extent: int
    stride: int
    other: int


@dataclass(frozen=True, slots=True)
class _Copy:
    """Nested loops, the largest stride first, from position `at` here and `other_at` there."""

    at: int
    other_at: int
    loops: tuple[_Loop, ...]

    def part(self, loop: _Loop, first: int, *instead: _Loop) -> "_Copy":
        """Start `loop` at its iteration `first` and put loops in its place."""
        rest = [inner for kept in self.loops for inner in (instead if kept is loop else (kept,))]
        return _Copy(
            self.at + first * loop.stride,
            self.other_at + first * loop.other,
            tuple(inner for inner in rest if inner.extent != 1),
        )


def boxes(view: View, shape: Ints, other: View) -> tuple[Box, ...]:
    """Divide the view of a row-major tensor into boxes, with the elements' places in `other`.

    Args:
        view: Elements of the tensor.
        shape: The tensor's sizes.
        other: The same elements, in the same order, in another memory.

    Raises:
        ValueError: the views differ in sizes, the view leaves the tensor, or it falls into more
            than `MAX_BOXES` boxes.
    """
    if view.sizes != other.sizes:
        raise ValueError(f"a view of sizes {view.sizes} cannot match one of {other.sizes}")
    if 0 in view.sizes:
        return ()
    if span(view)[1] >= math.prod(shape):
        raise ValueError(f"{view} leaves a tensor of shape {shape}")
    loops = _merge(
        _Loop(*loop)
        for loop in zip(view.sizes, view.strides, other.strides, strict=True)
        if loop[0] != 1
    )
    found = _divide(_Copy(view.offset, other.offset, loops), shape)
    result = tuple(islice(found, MAX_BOXES + 1))
    if len(result) > MAX_BOXES:
        raise ValueError(f"{view} of a tensor of shape {shape} is not made of boxes")
    return result


def span(view: View) -> tuple[int, int]:
    """Return the first and last position of a view that is not empty."""
    reach = sum((size - 1) * stride for size, stride in zip(view.sizes, view.strides, strict=True))
    return view.offset, view.offset + reach


def _merge(loops: Iterable[_Loop]) -> tuple[_Loop, ...]:
    merged: list[_Loop] = []
    for loop in sorted(loops, key=lambda loop: -loop.stride):
        outer = merged[-1] if merged else None
        if outer and (outer.stride, outer.other) == (
            loop.extent * loop.stride,
            loop.extent * loop.other,
        ):
            merged[-1] = replace(loop, extent=outer.extent * loop.extent)
        else:
            merged.append(loop)
    return tuple(merged)


def _divide(copy: _Copy, shape: Ints) -> Iterator[Box]:
    """Yield the copy as one box if each loop walks a dim of its own, else divide one loop."""
    units = contiguous_strides(shape)
    start = _unravel(copy.at, shape, units)
    walkers: dict[int, _Loop] = {}
    for loop in copy.loops:
        dim = _dim_walked(loop.stride, units)
        if dim is None:
            yield from _unroll(copy, loop, shape)
            return
        if dim in walkers:
            shorter = min(walkers[dim], loop, key=lambda walker: walker.extent)
            yield from _unroll(copy, shorter, shape)
            return
        step = loop.stride // units[dim]
        room = -(-(shape[dim] - start[dim]) // step)
        if loop.extent > room:
            cycle = shape[dim] // step if shape[dim] % step == 0 and start[dim] < step else 0
            yield from _wrap(copy, loop, room, cycle, shape)
            return
        walkers[dim] = loop
    dims = [walkers.get(dim, _Loop(1, unit, 0)) for dim, unit in enumerate(units)]
    yield Box(
        start,
        tuple(loop.extent for loop in dims),
        tuple(loop.stride // unit for loop, unit in zip(dims, units, strict=True)),
        copy.other_at,
        tuple(loop.other for loop in dims),
    )


def _unravel(position: int, shape: Ints, units: Ints) -> Ints:
    return tuple(position // unit % size for size, unit in zip(shape, units, strict=True))


def _dim_walked(stride: int, units: Ints) -> int | None:
    """Return the dim along which a stride steps, or None if it steps along several or none."""
    dim = next((dim for dim, unit in enumerate(units) if unit <= stride), None)
    return None if dim is None or stride % units[dim] else dim


def _unroll(copy: _Copy, loop: _Loop, shape: Ints) -> Iterator[Box]:
    for iteration in range(loop.extent):
        yield from _divide(copy.part(loop, iteration), shape)


def _wrap(copy: _Copy, loop: _Loop, room: int, cycle: int, shape: Ints) -> Iterator[Box]:
    """Divide a loop that runs past the end of its dim after `room` iterations.

    With `cycle` iterations to a full pass over the dim, whole passes become a loop of their own.
    """
    head = loop.extent // cycle * cycle if cycle else room
    passes = _Loop(head // cycle, cycle * loop.stride, cycle * loop.other) if cycle else None
    inner = replace(loop, extent=cycle or head)
    yield from _divide(copy.part(loop, 0, *([passes, inner] if passes else [inner])), shape)
    if head < loop.extent:
        tail = replace(loop, extent=loop.extent - head)
        yield from _divide(copy.part(loop, head, tail), shape)


def intersect(first: Box, second: Box) -> tuple[View, View] | None:
    """Find the common elements of two boxes of one tensor, as views of the boxes' memories."""
    common = [_meet(a, b) for a, b in zip(_ranges(first), _ranges(second), strict=True)]
    if not all(common):
        return None
    return _restrict(first, common), _restrict(second, common)


def _ranges(box: Box) -> list[range]:
    dims = zip(box.start, box.extent, box.step, strict=True)
    return [range(start, start + extent * step, step) for start, extent, step in dims]


def _meet(first: range, second: range) -> range:
    """Intersect two progressions, by the Chinese remainder theorem."""
    divisor = math.gcd(first.step, second.step)
    apart = second.start - first.start
    if apart % divisor:
        return range(0)
    modulus = second.step // divisor
    steps = apart // divisor * pow(first.step // divisor, -1, modulus) % modulus
    candidate = first.start + steps * first.step
    stride = first.step * modulus
    behind = max(first.start, second.start) - candidate
    begin = candidate + max(0, -(-behind // stride)) * stride
    return range(begin, min(first.stop, second.stop), stride)


def _restrict(box: Box, common: Sequence[range]) -> View:
    dims = list(zip(common, box.start, box.step, box.strides, strict=True))
    return View(
        box.offset + sum((kept.start - start) // step * by for kept, start, step, by in dims),
        tuple(len(kept) for kept in common),
        tuple(kept.step // step * by for kept, _, step, by in dims),
    )


def overlapping(shape: Ints, found: Sequence[Box]) -> tuple[int, int] | None:
    """Find two boxes of a tensor of `shape` that share an element, as positions in `found`."""
    units = contiguous_strides(shape)
    ends = [(_position(box.start, units), _position(box.last, units)) for box in found]
    open_boxes: list[int] = []
    for number in sorted(range(len(found)), key=lambda number: ends[number]):
        open_boxes = [other for other in open_boxes if ends[other][1] >= ends[number][0]]
        for other in open_boxes:
            if intersect(found[other], found[number]):
                return other, number
        open_boxes.append(number)
    return None


def _position(index: Ints, units: Ints) -> int:
    return sum(coordinate * unit for coordinate, unit in zip(index, units, strict=True))


def memory_shape(sizes: Ints, strides: Ints) -> Ints:
    """Order the sizes of a dense tensor as its dims lie in memory, outermost first.

    Raises:
        ValueError: in no order of its dims is the tensor contiguous.
    """
    order = sorted(range(len(sizes)), key=lambda dim: -strides[dim])
    shape = tuple(sizes[dim] for dim in order)
    natural = contiguous_strides(shape)
    if any(sizes[dim] > 1 and strides[dim] != by for dim, by in zip(order, natural, strict=True)):
        raise ValueError(f"a tensor of sizes {sizes} and strides {strides} is not dense")
    return shape

"""Whether boxes, with steps and overlaps, together hold every element of a tensor: exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm, prod

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.records import Ints
from tranship.schema.rules.cover import cut

MAX_CLASSES = 4096
"""Most classes of elements (modulo the steps) that are looked at one by one."""


@dataclass(frozen=True, slots=True, order=True)
class SteppedBox:
    """Elements `start + step * k`, `0 <= k < extent`, in every dim."""

    start: Ints
    extent: Ints
    step: Ints


@dataclass(frozen=True, slots=True)
class Gap:
    """Elements that no box holds: how many, and one of them."""

    count: int
    element: Ints


def find_gap(shape: Ints, boxes: Sequence[SteppedBox]) -> Gap | None:
    """Find what boxes inside a tensor of this shape leave out of it.

    Steps divide the elements of each dim into classes modulo their least common multiple; in a
    class, every box is a plain box.

    Raises:
        OverflowError: the boxes differ in too many ways to be compared in short time.
    """
    period = tuple(lcm(*(box.step[dim] for box in boxes)) for dim in range(len(shape)))
    if prod(period) > MAX_CLASSES:
        raise OverflowError("too many steps")
    gaps = [_gap_in_class(shape, boxes, period, rest) for rest in product(*map(range, period))]
    found = [gap for gap in gaps if gap is not None]
    if not found:
        return None
    return Gap(sum(gap.count for gap in found), min(gap.element for gap in found))


def _gap_in_class(shape: Ints, boxes: Sequence[SteppedBox], period: Ints, rest: Ints) -> Gap | None:
    """Find the gap among elements `rest + period * q`; boxes are taken in units of `q`."""
    size = [-((r - n) // p) for n, p, r in zip(shape, period, rest, strict=True)]
    plain = [_plain(box, period, rest) for box in boxes]
    # A dim of one element more makes scalars, which have no dim, like everything else.
    kept = [(*low, 0, *high, 1) for low, high in filter(None, plain)]
    dims = len(shape) + 1
    corners = np.array(kept, dtype=np.int64).reshape(len(kept), 2, dims)
    whole = np.array([[0] * dims]), np.array([[*(max(n, 0) for n in size), 1]])
    held = corners[:, 0], corners[:, 1]
    cells = cut(whole, held)
    if cells is None:
        raise OverflowError("too many boxes")
    missing = (cells.count(*whole) > 0) & (cells.count(*held) == 0)
    if not missing.any():
        return None
    point = cells.first(missing)
    element = tuple(r + p * q for r, p, q in zip(rest, period, point, strict=False))
    return Gap(cells.volume(missing), element)


def _plain(box: SteppedBox, period: Ints, rest: Ints) -> tuple[Ints, Ints] | None:
    """The elements of a box in one class, as low and high in units of the period."""
    low, high = list[int](), list[int]()
    for start, extent, step, p, r in zip(
        box.start, box.extent, box.step, period, rest, strict=True
    ):
        if (r - start) % step:
            return None
        first, last = start + (r - start) % p, start + (extent - 1) * step
        low.append((first - r) // p)
        high.append((last - r) // p + 1)
    return tuple(low), tuple(max(a, b) for a, b in zip(low, high, strict=True))


def box_of(start: IntArray, extent: IntArray, step: Ints) -> SteppedBox:
    """Make a box of one row of arrays."""
    return SteppedBox(tuple(start.tolist()), tuple(extent.tolist()), step)

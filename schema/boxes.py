"""Boxes of logical tensors as arrays, and the one operation on them: intersection.

A set of `n` boxes in `d` dims is two int64 arrays `[n, d]`, start and extent, and one step per
dim that all share: box `i` holds `start[i] + step * k`, `0 <= k < extent[i]`, in every dim.
"""

from dataclasses import dataclass
from math import gcd

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.records import Ints


@dataclass(frozen=True, slots=True)
class Boxes:
    """`n` boxes in `d` dims: `start` and `extent` int64 `[n, d]`, `step` one int per dim."""

    start: IntArray
    extent: IntArray
    step: Ints

    def take(self, index: IntArray) -> "Boxes":
        """The boxes at positions `index`, in that order."""
        return Boxes(self.start[index], self.extent[index], self.step)

    @property
    def occupied(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Boolean `[n]`: which boxes hold at least one element."""
        return np.all(self.extent > 0, axis=1)

    @property
    def volume(self) -> IntArray:
        """Number of elements in each box, `[n]`."""
        return np.prod(np.maximum(self.extent, 0), axis=1, dtype=np.int64)


def intersect(first: Boxes, second: Boxes) -> Boxes:
    """Intersect box `i` of `first` with box `i` of `second`; empty ones get extent 0.

    The common elements of two stepped rows are again a stepped row, whose first element the
    Chinese remainder theorem gives.
    """
    dims = range(len(first.step))
    parts = [_intersect_dim(first, second, dim) for dim in dims]
    shape = first.start.shape
    start = np.stack([part[0] for part in parts], axis=1) if parts else np.zeros(shape, np.int64)
    extent = np.stack([part[1] for part in parts], axis=1) if parts else np.zeros(shape, np.int64)
    return Boxes(start, extent, tuple(part[2] for part in parts))


def _intersect_dim(first: Boxes, second: Boxes, dim: int) -> tuple[IntArray, IntArray, int]:
    a, b = first.start[:, dim], second.start[:, dim]
    step_a, step_b = first.step[dim], second.step[dim]
    last = np.minimum(
        a + (first.extent[:, dim] - 1) * step_a, b + (second.extent[:, dim] - 1) * step_b
    )
    low = np.maximum(a, b)
    if step_a == step_b == 1:
        return low, np.maximum(last - low + 1, 0), 1
    common = gcd(step_a, step_b)
    step = step_a // common * step_b
    modulus = step_b // common
    inverse = pow(step_a // common, -1, modulus) if modulus > 1 else 0
    meets = (b - a) % common == 0
    start = a + step_a * (((b - a) // common * inverse) % modulus)
    start = start + -(-(low - start) // step) * step
    extent = np.where(meets & (last >= start), (last - start) // step + 1, 0)
    return start, np.maximum(extent, 0), step


def contains(outer: Boxes, inner: Boxes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether box `i` of `outer` holds every element of box `i` of `inner`, `[n]`."""
    return intersect(outer, inner).volume == inner.volume


def cells_of(boxes: Boxes, origin: IntArray, block: Ints) -> tuple[IntArray, IntArray]:
    """First block, and number of blocks, that each box touches: `[n, d]` each.

    `origin` `[n, d]` is the logical element at which block 0 starts. Boxes must have step 1.
    """
    size = np.array(block, dtype=np.int64).reshape(1, -1)
    first = (boxes.start - origin) // size
    last = (boxes.start + boxes.extent - 1 - origin) // size
    return first, np.where(boxes.extent > 0, last - first + 1, 0)


def grow_to_cells(boxes: Boxes, origin: IntArray, block: Ints, shape: Ints) -> Boxes:
    """Grow every box to whole blocks, clipped to the tensor and to the grid's origin."""
    first, count = cells_of(boxes, origin, block)
    size = np.array(block, dtype=np.int64).reshape(1, -1)
    limit = np.array(shape, dtype=np.int64).reshape(1, -1)
    start = np.maximum(origin + first * size, 0)
    end = np.minimum(origin + (first + count) * size, limit)
    return Boxes(start, end - start, boxes.step)


def resolve_block(block: tuple[int | str, ...], shape: Ints) -> Ints:
    """Block sizes in elements: "all" is the whole dim (at least 1)."""
    return tuple(
        max(size, 1) if entry == "all" else int(entry)
        for entry, size in zip(block, shape, strict=True)
    )

"""What binding makes of jobs: tables of addresses, one for each class of jobs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tranship.runtime.jobs import NOWHERE, places
from tranship.schema.expression import IntArray

LANES = 16
"""Sums that make up one digest: programs that add to different ones do not wait for another."""

Mask: TypeAlias = NDArray[np.bool_]

Option: TypeAlias = object
"""A compile-time argument of a kernel, or one of its launch: a number, a dtype, None."""


@dataclass(frozen=True, slots=True)
class Table:
    """One launch: a program per row of `records`, int64 `[programs, columns]`.

    `kernel` is one of those that `launch.py` knows. `fragments` is a second table that records
    point into. `options` are the kernel's compile-time arguments and those of the launch.
    """

    kernel: str
    records: IntArray
    options: Mapping[str, Option]
    fragments: IntArray | None = None


@dataclass(frozen=True, slots=True)
class Wire:
    """Where the values of each job lie in the messages of the round, for digests; `[jobs]`.

    `entry` counts digests; `offset` is the byte in the message at which the values that the job
    writes start, row-major, and `scale_offset` the same of the scales. -1 stands for nowhere.
    """

    entry: IntArray
    offset: IntArray
    scale_offset: IntArray

    @classmethod
    def nowhere(cls, rows: int) -> "Wire":
        """Return the wire of jobs that nobody digests."""
        nothing = np.full(rows, -1, np.int64)
        return cls(nothing, nothing, nothing)

    def take(self, index: IntArray) -> "Wire":
        """Return the rows at `index`."""
        return Wire(self.entry[index], self.offset[index], self.scale_offset[index])


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses of what buffer numbers stand for, `NOWHERE` and `SLOT` included."""

    base: IntArray

    @classmethod
    def of(cls, buffers: Sequence[Tensor | int], slot: Tensor | int) -> "Addresses":
        """Take the address of each buffer's first element; numbers are addresses already."""
        every = [0, slot, *buffers]
        return cls(np.array([a if isinstance(a, int) else a.data_ptr() for a in every], np.int64))

    def __call__(self, numbers: IntArray, offsets: IntArray) -> IntArray:
        """Return the addresses of bytes `offsets` of the buffers `numbers`, 0 for `NOWHERE`."""
        found = self.base[numbers - NOWHERE] + offsets
        return np.where(numbers == NOWHERE, 0, found)


@dataclass(frozen=True, slots=True)
class Strided:
    """Boxes that every operand addresses with strides; dims are merged where all allow it.

    `sizes` `[n, D]` and, per operand, `strides` `[n, D]` have the innermost dim first; dims that
    are not used have size 1.
    """

    sizes: IntArray
    strides: tuple[IntArray, ...]


def merge_dims(sizes: IntArray, *strides: IntArray) -> Strided:
    """Merge the dims of boxes `[n, D]`, outermost dim first as in job tables."""
    rows, dims = sizes.shape
    merged = np.ones((rows, dims), np.int64)
    steps = tuple(np.zeros((rows, dims), np.int64) for _ in strides)
    row, column = np.arange(rows, dtype=np.int64), np.zeros(rows, np.int64)
    for dim in reversed(range(dims)):
        size = sizes[:, dim]
        have = merged[row, column]
        joins = np.ones(rows, bool)
        for step, stride in zip(steps, strides, strict=True):
            joins &= stride[:, dim] == have * step[row, column]
        joins &= have > 1
        starts = (size != 1) & ~joins
        column = column + (starts & (have > 1))
        merged[row, column] = np.where(
            size == 1, merged[row, column], np.where(joins, have * size, size)
        )
        for step, stride in zip(steps, strides, strict=True):
            step[row, column] = np.where(starts, stride[:, dim], step[row, column])
    return Strided(merged, steps)


def unroll(boxes: Strided, kept: int) -> tuple[IntArray, IntArray]:
    """Unroll all but the innermost `kept` dims: the box of each row, and its place `[rows, D]`."""
    counts = boxes.sizes.copy()
    counts[:, :kept] = 1
    return places(counts)


def common_unit(*columns: IntArray) -> IntArray:
    """Return the largest power of two up to 16 that divides all numbers of a row, `[n]`."""
    bits = np.full(len(columns[0]), 16, np.int64)
    for column in columns:
        bits |= column
    return bits & -bits


def classes(*keys: IntArray | Mask) -> Iterator[tuple[tuple[int, ...], IntArray]]:
    """Yield every different combination of the columns `keys`, and the rows that have it."""
    table = np.stack([np.asarray(key, np.int64) for key in keys], axis=1)
    different, number = np.unique(table, axis=0, return_inverse=True)
    number = number.reshape(-1)
    for position, key in enumerate(different):
        yield tuple(key.tolist()), np.flatnonzero(number == position)

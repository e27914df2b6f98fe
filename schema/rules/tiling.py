"""Whether strided regions tile the memory of a buffer: exact, and without visiting elements.

An address is written in digits whose places are worth the strides that occur: with strides 1, 64
and 4096, address 4160 is digits 0, 1, 1. Where each stride divides the next, every region is a
few boxes of digits, which `cover.py` counts. Other regions are counted as runs of neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.records import Ints
from tranship.schema.rules.cover import Cells, cut

MAX_RUNS = 2**20
"""Most runs of neighbours that are counted where strides do not divide one another."""

Boxes = tuple[IntArray, IntArray]
"""Boxes `low <= x < high`: int64 `[n, d]` each."""


@dataclass(frozen=True)
class Region:
    """Elements at `offset + sum(k * strides)`, `0 <= k < sizes`, all at different addresses.

    Each stride must be larger than the span of all smaller ones (`nests` in `geometry.py`), which
    holds for views of contiguous memory.
    """

    offset: int
    sizes: Ints
    strides: Ints

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """Pairs (size, stride), smallest stride first; dims that continue each other are joined."""
        pairs = sorted(
            (pair for pair in zip(self.sizes, self.strides, strict=True) if pair[0] != 1),
            key=lambda pair: pair[1],
        )
        joined: list[tuple[int, int]] = []
        for size, stride in pairs:
            if joined and joined[-1][0] * joined[-1][1] == stride:
                joined[-1] = joined[-1][0] * size, joined[-1][1]
            else:
                joined.append((size, stride))
        return tuple(joined)

    @property
    def volume(self) -> int:
        """Number of elements."""
        return prod(self.sizes)

    def index(self, address: int) -> Ints | None:
        """Find which element, one index per dim, lies at an address; None where none does."""
        rest, found = address - self.offset, [0] * len(self.sizes)
        if rest < 0 or not self.volume:
            return None
        for dim in sorted(range(len(self.sizes)), key=lambda dim: -self.strides[dim]):
            if self.sizes[dim] > 1:
                found[dim] = min(rest // self.strides[dim], self.sizes[dim] - 1)
                rest -= found[dim] * self.strides[dim]
        return tuple(found) if rest == 0 else None


@dataclass(frozen=True, slots=True)
class Spot:
    """Some elements of which the same is true: how many, and the address of the first."""

    count: int
    address: int


@dataclass(frozen=True, slots=True)
class Tiling:
    """What keeps regions from tiling a buffer: elements outside it, held twice, not held."""

    outside: Spot | None
    repeated: Spot | None
    missing: Spot | None


def tile(buffer: Region, parts: Sequence[Region]) -> Tiling | None:
    """Compare regions with the buffer that they should tile; None if that takes too long."""
    held = [part for part in parts if part.volume]
    memory = [buffer] if buffer.volume else []
    worth = place_values([*memory, *held])
    if not worth and sum(_run_count(region) for region in (*memory, *held)) > MAX_RUNS:
        return None
    inside_boxes, held_boxes = _boxes(memory, worth), _boxes(held, worth)
    cells = cut(inside_boxes, held_boxes)
    if cells is None:
        return None
    inside, count = cells.count(*inside_boxes) > 0, cells.count(*held_boxes)
    return Tiling(
        outside=_spot(cells, (count > 0) & ~inside, worth),
        repeated=_spot(cells, count > 1, worth),
        missing=_spot(cells, inside & (count == 0), worth),
    )


def place_values(regions: Sequence[Region]) -> Ints:
    """List the strides that occur, ascending from 1; nothing where one does not divide the next."""
    strides = sorted({1, *(stride for region in regions for _, stride in region.runs)})
    chain = all(b % a == 0 for a, b in pairwise(strides))
    return tuple(strides) if chain else ()


def _boxes(regions: Sequence[Region], worth: Ints) -> Boxes:
    """Turn regions into boxes of digits, or, without place values, into runs of addresses."""
    if not worth:
        return _boxes_of_runs(regions)
    boxes = [box for region in regions for box in digit_boxes(region, worth)]
    both = np.array(boxes, dtype=np.int64).reshape(len(boxes), 2, len(worth))
    return both[:, 0], both[:, 1]


def digit_boxes(region: Region, worth: Ints) -> list[tuple[Ints, Ints]]:
    """Split a region into boxes of digits: pairs (low, high), from the lowest digit up.

    A run that crosses from one value of the next digit to another is cut there: into its head, the
    values that it goes through whole, and its tail.
    """
    size = {stride: size for size, stride in region.runs}
    # Boxes so far; the number left for the digits above; how many of its values a whole run takes.
    open_boxes: list[tuple[Ints, Ints, int, int]] = [((), (), region.offset, 1)]
    for stride, above in pairwise(worth):
        base, cut_boxes = above // stride, list[tuple[Ints, Ints, int, int]]()
        for low, high, number, whole in open_boxes:
            extent = max(whole, size.get(stride, 1))
            for first, last, carry, repeat in _digit_runs(number, extent, base):
                cut_boxes.append(((*low, first), (*high, last), carry, repeat))
        open_boxes = cut_boxes
    top = size.get(worth[-1], 1)
    return [
        ((*low, number), (*high, number + max(whole, top)))
        for low, high, number, whole in open_boxes
    ]


def _digit_runs(number: int, extent: int, base: int) -> list[tuple[int, int, int, int]]:
    """Write `number, ..., number + extent - 1` as (first, last + 1, carry, count of carries)."""
    carry, first = divmod(number, base)
    if first + extent <= base:
        return [(first, first + extent, carry, 1)]
    whole, tail = divmod(first + extent - base, base)
    runs = [(first, base, carry, 1)]
    if whole:
        runs.append((0, base, carry + 1, whole))
    if tail:
        runs.append((0, tail, carry + 1 + whole, 1))
    return runs


def _run_count(region: Region) -> int:
    neighbours = region.runs[0][0] if region.runs and region.runs[0][1] == 1 else 1
    return region.volume // neighbours


def _boxes_of_runs(regions: Sequence[Region]) -> Boxes:
    """List the runs of neighbouring elements of all regions."""
    starts, lengths = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for region in regions:
        pairs = list(region.runs)
        length = pairs.pop(0)[0] if pairs and pairs[0][1] == 1 else 1
        start = np.array([region.offset], dtype=np.int64)
        for size, stride in pairs:
            start = (start[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
        starts.append(start)
        lengths.append(np.full(len(start), length, dtype=np.int64))
    low = np.concatenate(starts)
    return low[:, None], (low + np.concatenate(lengths))[:, None]


def _spot(
    cells: Cells, chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], worth: Ints
) -> Spot | None:
    if not chosen.any():
        return None
    # Digits are stored lowest first, but addresses are in order when the highest leads.
    turned = Cells(cells.edges[::-1])
    point = turned.first(np.transpose(chosen))[::-1]
    places = worth or (1,)
    address = sum(digit * place for digit, place in zip(point, places, strict=True))
    return Spot(cells.volume(chosen), address)

"""Whether strided regions of memory fill it exactly once: an exact test without pairs or bitmaps.

Write a region as the polynomial with a term `x ** a` for every address `a` in it. A set of regions
covers memory exactly once if their polynomials add up to that of the memory. Each polynomial is a
product, one factor per dim:

    x ** offset * (1 + x ** stride + ... + x ** (stride * (size - 1)))

and `1 - x ** stride` times such a factor is `1 - x ** (stride * size)`. So all polynomials of one
owner (a buffer, say) are multiplied by `1 - x ** stride` for every stride that occurs there. What
is left of a region is its corners, two for each stride, and the sums are compared term by term.
Nothing is lost: such a product is zero only if the sum was, and its lowest term is the sum's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema.expression import IntArray

MAX_FACTORS = 10
"""Most different strides among the regions of one owner; corners double with each."""


@dataclass(frozen=True, slots=True)
class Regions:
    """`n` strided regions: element `k` of region `i` lies at `offset[i] + sum(k * strides[i])`.

    `owner`, `offset` and `weight` are int64 `[n]`, `sizes` and `strides` `[n, d]`. Each region
    counts `weight` times; memory that is to be filled counts -1.
    """

    owner: IntArray
    offset: IntArray
    sizes: IntArray
    strides: IntArray
    weight: IntArray

    def take(self, rows: IntArray) -> "Regions":
        """The regions at positions `rows`."""
        return Regions(
            self.owner[rows],
            self.offset[rows],
            self.sizes[rows],
            self.strides[rows],
            self.weight[rows],
        )


def regions(
    owner: IntArray, offset: IntArray, sizes: IntArray, strides: IntArray, weight: int = 1
) -> Regions:
    """Regions that all count `weight` times."""
    return Regions(owner, offset, sizes, strides, np.full(len(owner), weight, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Differences:
    """Owners whose weighted regions do not cancel: the lowest such address of each, and the sum.

    `unknown` are owners with more than `MAX_FACTORS` strides, which are not compared.
    """

    owner: IntArray
    address: IntArray
    excess: IntArray
    unknown: IntArray


def differences(parts: Sequence[Regions]) -> Differences:
    """Add the weighted regions of all parts up, owner by owner."""
    every = _normalised(_joined(parts))
    factors, sizes, unknown = _factors(every)
    known = np.flatnonzero(~np.isin(every.owner, unknown))
    owner, address, weight = _corners(every.take(known), factors[known], sizes[known])
    owner, address, weight = _summed(owner, address, weight)
    left = np.flatnonzero(weight)
    first = left[np.unique(owner[left], return_index=True)[1]]
    return Differences(owner[first], address[first], weight[first], unknown)


def _joined(parts: Sequence[Regions]) -> Regions:
    dims = max((part.sizes.shape[1] for part in parts), default=0) or 1
    return Regions(
        np.concatenate([part.owner for part in parts]),
        np.concatenate([part.offset for part in parts]),
        np.concatenate([_padded(part.sizes, dims, 1) for part in parts]),
        np.concatenate([_padded(part.strides, dims, 0) for part in parts]),
        np.concatenate([part.weight for part in parts]),
    )


def _padded(table: IntArray, columns: int, value: int) -> IntArray:
    return np.pad(table, ((0, 0), (0, columns - table.shape[1])), constant_values=value)


def _normalised(every: Regions) -> Regions:
    """The same regions with strides positive and descending, and neighbouring dims joined."""
    every = every.take(np.flatnonzero((every.sizes > 0).all(axis=1)))
    back = (every.sizes - 1) * np.minimum(every.strides, 0)
    strides = np.where(every.sizes > 1, np.abs(every.strides), 0)
    repeats = np.prod(np.where(strides == 0, every.sizes, 1), axis=1, dtype=np.int64)
    sizes, strides = _descending(np.where(strides > 0, every.sizes, 1), strides)
    for dim in reversed(range(sizes.shape[1] - 1)):
        inner = sizes[:, dim + 1] * strides[:, dim + 1]
        joins = (strides[:, dim] == inner) & (sizes[:, dim + 1] > 1)
        sizes[joins, dim] *= sizes[joins, dim + 1]
        strides[joins, dim] = strides[joins, dim + 1]
        sizes[joins, dim + 1] = 1
        strides[joins, dim + 1] = 0
    offset = every.offset + back.sum(axis=1)
    return Regions(every.owner, offset, *_descending(sizes, strides), every.weight * repeats)


def _descending(sizes: IntArray, strides: IntArray) -> tuple[IntArray, IntArray]:
    order = np.argsort(-strides, axis=1, kind="stable")
    return np.take_along_axis(sizes, order, axis=1), np.take_along_axis(strides, order, axis=1)


def _factors(every: Regions) -> tuple[IntArray, IntArray, IntArray]:
    """The strides of every region's owner, and the region's size along each.

    Returns:
        Strides `[n, factors]`, 0 where the owner has fewer; sizes `[n, factors]`, 1 where the
        region has no such dim; and the owners with too many factors, whose rows mean nothing.
    """
    owners, owner = np.unique(every.owner, return_inverse=True)
    row, dim = np.nonzero(every.strides)
    stride = every.strides[row, dim]
    factor_owner, factor_stride, factor = _distinct(owner[row], stride, _repeats(every)[row, dim])
    place: IntArray = np.arange(len(factor_owner)) - np.searchsorted(factor_owner, factor_owner)
    few = place < MAX_FACTORS
    strides = np.zeros((len(owners), int(place[few].max(initial=-1)) + 1), dtype=np.int64)
    strides[factor_owner[few], place[few]] = factor_stride[few]
    sizes = np.ones((len(owner), strides.shape[1]), dtype=np.int64)
    inside = few[factor]
    sizes[row[inside], place[factor][inside]] = every.sizes[row[inside], dim[inside]]
    return strides[owner], sizes, owners[np.unique(factor_owner[~few])]


def _repeats(every: Regions) -> IntArray:
    """How often a dim's stride came before in the same region, `[n, d]`."""
    again = np.zeros_like(every.strides)
    for dim in range(1, again.shape[1]):
        same = every.strides[:, dim] == every.strides[:, dim - 1]
        again[:, dim] = np.where(same, again[:, dim - 1] + 1, 0)
    return again


def _distinct(
    owner: IntArray, stride: IntArray, again: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Owner and stride of every factor, by owner; and for every input row the factor that it is."""
    values, kind = np.unique(stride, return_inverse=True)
    kinds, times = max(len(values), 1), int(again.max(initial=0)) + 1
    keys, factor = np.unique((owner * kinds + kind) * times + again, return_inverse=True)
    return keys // times // kinds, values[keys // times % kinds], factor


def _corners(
    every: Regions, factors: IntArray, sizes: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Owner, address and weight of every corner."""
    region = np.arange(len(every.owner))
    address, weight = every.offset, every.weight
    for column in range(factors.shape[1]):
        jump = factors[region, column] * sizes[region, column]
        far = np.flatnonzero(jump)
        region = np.concatenate([region, region[far]])
        address = np.concatenate([address, address[far] + jump[far]])
        weight = np.concatenate([weight, -weight[far]])
    return every.owner[region], address, weight


def _summed(
    owner: IntArray, address: IntArray, weight: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Add the weights at equal addresses of equal owners; the result is sorted."""
    order = np.lexsort((address, owner))
    owner, address, weight = owner[order], address[order], weight[order]
    fresh = np.ones(len(owner), dtype=np.bool_)
    fresh[1:] = (owner[1:] != owner[:-1]) | (address[1:] != address[:-1])
    start = np.flatnonzero(fresh)
    sums = np.add.reduceat(weight, start) if len(start) else weight
    return owner[start], address[start], sums

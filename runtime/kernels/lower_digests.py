"""Digests of what no other kernel digests on its way, as tables."""

import numpy as np

from tranship.runtime.jobs import places, row_major
from tranship.runtime.kernels.tables import Table, classes, common_unit, merge_dims
from tranship.schema.expression import IntArray

_WORDS = (2048, 512, 64)
"""Words that one program may digest: as many as the largest box fills."""


def lower_digests(
    address: IntArray,
    sizes: IntArray,
    strides: IntArray,
    item: IntArray,
    entry: IntArray,
    offset: IntArray,
) -> tuple[Table, ...]:
    """Return the launches that digest boxes of elements.

    Args:
        address: byte at which the first element of each box lies, `[n]`.
        sizes: elements of each box, `[n, D]`.
        strides: steps between them in elements, `[n, D]`.
        item: bytes per element, `[n]`.
        entry: the digest that each box adds to, `[n]`.
        offset: byte of the message at which it starts, a multiple of 8, `[n]`.
    """
    # Boxes that lie in memory as in the message are read in wider elements.
    boxes = merge_dims(sizes, strides, row_major(sizes))
    dense = (boxes.strides[0][:, 0] == 1) | (boxes.sizes[:, 0] == 1)
    flat = np.all(boxes.sizes[:, 1:] == 1, axis=1) & dense
    whole = boxes.sizes[:, 0] * item
    unit = np.where(flat, np.minimum(common_unit(address, whole), 8), item)
    count = np.prod(sizes, axis=1)
    count = np.where(flat, whole // unit, count)
    inner, step = boxes.sizes.copy(), boxes.strides[0].copy()
    inner[flat, 0], step[flat, 0] = count[flat], 1
    used = inner.shape[1] - np.argmax(inner[:, ::-1] > 1, axis=1)
    dims = np.where(flat, 0, np.where(np.all(inner == 1, axis=1), 1, used))
    words = -(-count * unit // 8)
    largest = int(words.max(initial=0))
    most = next((size for size in reversed(_WORDS) if largest <= size), _WORDS[0])
    return tuple(
        Table(
            "digest_elements",
            _records(address, count, inner, step, entry, offset, index, width, most, depth),
            {
                "WORDS": most,
                "ITEM": width,
                "DIMS": depth,
                "num_warps": max(1, most // 512),
            },
        )
        for (width, depth), index in (classes(unit, dims) if len(unit) else ())
    )


def lower_flat_digests(
    address: IntArray, size: IntArray, entry: IntArray, offset: IntArray
) -> tuple[Table, ...]:
    """Return the launches that digest `size` contiguous bytes each, `[n]`."""
    ones = np.ones((len(address), 1), np.int64)
    return lower_digests(address, size[:, np.newaxis], ones, ones[:, 0], entry, offset)


def _records(
    address: IntArray,
    count: IntArray,
    inner: IntArray,
    step: IntArray,
    entry: IntArray,
    offset: IntArray,
    index: IntArray,
    width: int,
    most: int,
    depth: int,
) -> IntArray:
    words = -(-count[index] * width // 8)
    part, place = places(-(-words // most)[:, np.newaxis])
    own = index[part]
    table = np.zeros((len(own), 5 + 2 * depth), np.int64)
    table[:, 0], table[:, 1] = address[own], count[own]
    table[:, 2], table[:, 3], table[:, 4] = offset[own] // 8 + 1, entry[own], place[:, 0] * most
    table[:, 5::2], table[:, 6::2] = inner[own, :depth], step[own, :depth]
    return table

"""Name the element at an address, for messages: where it is, and what it stands for."""

from collections.abc import Sequence

import numpy as np

from tranship.compiler.proofs.tiling import Regions
from tranship.schema.manifest import Part
from tranship.schema.records import BufferRecord, Ints


def position(
    address: int, offset: int, sizes: Sequence[int], strides: Sequence[int]
) -> Ints | None:
    """The index, per dim, at which a strided region holds an address; None if it does not.

    The region must not overlap itself.
    """
    rest = address - offset
    rest -= sum((size - 1) * min(stride, 0) for size, stride in zip(sizes, strides, strict=True))
    found = [0] * len(sizes)
    for dim in sorted(range(len(sizes)), key=lambda dim: -abs(strides[dim])):
        stride = abs(strides[dim])
        count = min(rest // stride, sizes[dim] - 1) if stride else 0
        rest -= count * stride
        found[dim] = count if strides[dim] >= 0 else sizes[dim] - 1 - count
        if count < 0:
            return None
    return None if rest else tuple(found)


def element_text(buffer: BufferRecord, address: int) -> str:
    """An element of a buffer as `[3, 0]`, or by its offset if it is outside."""
    found = position(address, 0, buffer.shape, buffer.strides)
    return f"at offset {address}" if found is None else str(list(found))


def meaning(buffer: BufferRecord, address: int) -> str:
    """What a buffer's element stands for by its declared pieces and fills."""
    for piece in buffer.pieces:
        found = position(address, piece.offset, piece.extent, piece.strides)
        if found is not None:
            dims = zip(piece.start, piece.step, found, strict=True)
            index = [start + step * k for start, step, k in dims]
            what = "element" if piece.part is Part.VALUE else "the scale of block"
            return f"{what} {index} of '{piece.tensor}'"
    return "a fill" if buffer.fills else "no tensor"


def holding(regions: Regions, owner: int, address: int) -> bool:
    """Whether one of the regions of `owner` holds an address."""
    rows = np.flatnonzero(regions.owner == owner).tolist()
    return any(
        position(
            address,
            int(regions.offset[row]),
            regions.sizes[row].tolist(),
            regions.strides[row].tolist(),
        )
        is not None
        for row in rows
    )

"""Which part of a tensor a rank holds: nested chunks as torch cuts them, or every n-th row."""

from dataclasses import dataclass
from math import prod

from tranship.schema.records import Ints
from tranship.schema.testing.cases import Holding


@dataclass(frozen=True)
class Shard:
    """One rank's part of one tensor: elements `start + step * k`, `0 <= k < extent`, per dim."""

    start: Ints
    extent: Ints
    step: Ints


def shard_of(shape: Ints, mesh: Ints, position: int, holding: Holding) -> Shard:
    """Cut a tensor for one rank.

    Along a dim of size `n` and an axis of size `w`, coordinate `c` holds `ceil(n / w)` elements
    from `c * ceil(n / w)`, as far as there are any; further axes cut what is left.

    Args:
        shape: Global shape.
        mesh: Sizes of the mesh axes, outermost first.
        position: The rank's row-major position in the mesh.
        holding: Which axis shards which dim.
    """
    sizes = (prod(mesh),) if holding.joint else mesh
    start, extent, step = [0] * len(shape), list(shape), [1] * len(shape)
    for axis, (size, placement) in enumerate(zip(sizes, holding.placements, strict=True)):
        coordinate = position // prod(sizes[axis + 1 :]) % size
        if placement == "strided":
            start[0], step[0] = coordinate, size
            extent[0] = len(range(coordinate, shape[0], size))
        elif placement is not None:
            chunk = -(-extent[placement] // size)
            skipped = min(chunk * coordinate, extent[placement])
            start[placement] += skipped
            extent[placement] = min(chunk, extent[placement] - skipped)
    return Shard(tuple(start), tuple(extent), tuple(step))

"""How often boxes cover each point of a space, exactly, without visiting every point.

The corners of the boxes cut the space into cells, in each of which the count is the same.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from tranship.schema.expression import IntArray

MAX_CELLS = 2**22
"""Most cells that are counted; a set of boxes with more is left undecided."""


@dataclass(frozen=True)
class Cells:
    """Cells of a space: in dim `d` cell `i` goes from `edges[d][i]` to `edges[d][i + 1]`."""

    edges: tuple[IntArray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells in every dim."""
        return tuple(len(edge) - 1 for edge in self.edges)

    def count(self, low: IntArray, high: IntArray) -> IntArray:
        """Count the boxes `low <= x < high`, `[n, d]` each, in every cell.

        Every corner must be an edge. The counts are summed from their changes at the corners.
        """
        change = np.zeros([len(edge) for edge in self.edges], dtype=np.int64)
        ends = [
            (np.searchsorted(edge, low[:, dim]), np.searchsorted(edge, high[:, dim]))
            for dim, edge in enumerate(self.edges)
        ]
        for corner in product((0, 1), repeat=len(self.edges)):
            at = tuple(ends[dim][side] for dim, side in enumerate(corner))
            np.add.at(change, at, (-1) ** sum(corner))
        for dim in range(change.ndim):
            change = np.cumsum(change, axis=dim)
        return change[tuple(slice(0, size) for size in self.shape)]

    def volume(self, chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> int:
        """Count the points of the chosen cells."""
        total = chosen.astype(np.int64)
        for edge in reversed(self.edges):
            total = total @ np.diff(edge)
        return int(total)

    def first(self, chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[int, ...]:
        """Return the first point of the first chosen cell."""
        cell = np.unravel_index(int(np.argmax(chosen)), self.shape)
        return tuple(int(edge[i]) for edge, i in zip(self.edges, cell, strict=True))


def cut(*boxes: tuple[IntArray, IntArray]) -> Cells | None:
    """Cut a space at all corners of sets of boxes; None for more than `MAX_CELLS` cells."""
    lows, highs = zip(*boxes, strict=True)
    corners = np.concatenate([*lows, *highs])
    edges = tuple(np.unique(corners[:, dim]) for dim in range(corners.shape[1]))
    size = 1
    for edge in edges:
        size *= len(edge)
    return Cells(edges) if size <= MAX_CELLS else None

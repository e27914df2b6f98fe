"""Mesh axes as arithmetic: the coordinates of ranks."""

from collections.abc import Iterable, Mapping

import numpy as np

from tranship.schema.expression import IntArray, Interval
from tranship.schema.manifest import Axis

RANK = "rank"
"""The name that stands for the rank itself wherever an axis may be named."""


def coordinates(axes: Iterable[Axis], ranks: IntArray) -> dict[str, IntArray]:
    """Coordinates of `ranks` (int64, any shape) on every axis, and the ranks themselves."""
    named = {axis.name: ranks // axis.stride % axis.size for axis in axes}
    return named | {RANK: ranks}


def axis_ranges(axes: Iterable[Axis], world_size: int) -> dict[str, Interval]:
    """Smallest and largest coordinate of every axis, and of `rank`."""
    return {axis.name: (0, axis.size - 1) for axis in axes} | {RANK: (0, world_size - 1)}


def table_arrays(tables: Mapping[str, tuple[int, ...]]) -> dict[str, IntArray]:
    """Tables as int64 arrays, for `expression.evaluate`."""
    return {name: np.array(values, dtype=np.int64) for name, values in tables.items()}

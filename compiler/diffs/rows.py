"""Families as arrays: a row for every member on every rank that has it, and its expressions there.

Two manifests are compared on the same ranks. Where they lie on different meshes the rules of both
are read on the new mesh: what is left is what changed besides the mesh.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.manifest import Axis, Manifest
from tranship.schema.members import Rows
from tranship.schema.mesh import coordinates, table_arrays
from tranship.schema.plan import PlanSide
from tranship.schema.rows import number_rows


@dataclass(frozen=True)
class World:
    """Ranks `[r]`, their coordinates `[r]` on every axis, and the tables."""

    ranks: IntArray
    place: Mapping[str, IntArray]
    lookup: Mapping[str, IntArray]

    def all_rows(self) -> Rows:
        """One row for every rank."""
        return Rows(dict(self.place), len(self.ranks), self.lookup)


ONE = World(np.zeros(1, dtype=np.int64), {}, {})
"""A world for what no rank has, such as logical tensors."""


def same_mesh(old: Manifest | PlanSide, new: Manifest | PlanSide) -> bool:
    """Whether equal ranks have equal coordinates."""
    return old.world_size == new.world_size and set(old.axes) == set(new.axes)


def worlds(
    old: Manifest | PlanSide, new: Manifest | PlanSide, ranks: IntArray
) -> tuple[World, World]:
    """Place `ranks` of the new mesh for both; an axis that the new one lacks keeps its meaning."""
    renewed = {axis.name: axis for axis in new.axes}
    axes = [renewed.get(axis.name, axis) for axis in old.axes]
    return _world(axes, old, ranks), _world(new.axes, new, ranks)


def _world(axes: Sequence[Axis], side: Manifest | PlanSide, ranks: IntArray) -> World:
    return World(ranks, coordinates(axes, ranks), table_arrays(side.tables))


def row_codes(matrix: IntArray) -> IntArray:
    """Number the rows of `[n, k]` so that equal rows have equal numbers, and others not."""
    return number_rows(list(matrix.T), len(matrix))

"""Families as arrays: a row for every member on every rank that has it, and its expressions there.

Two manifests are compared on the same ranks. Where they lie on different meshes the rules of both
are read on the new mesh: what is left is what changed besides the mesh.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema import indexset
from tranship.schema.expression import IntArray, evaluate, parse
from tranship.schema.manifest import Axis, IntExpression, Manifest
from tranship.schema.mesh import coordinates, table_arrays
from tranship.schema.plan import PlanSide


@dataclass(frozen=True)
class World:
    """Ranks `[r]`, their coordinates `[r]` on every axis, and the tables."""

    ranks: IntArray
    place: Mapping[str, IntArray]
    lookup: Mapping[str, IntArray]

    def all_rows(self) -> "Rows":
        """One row for every rank."""
        return Rows(dict(self.place), len(self.ranks), self.lookup)


@dataclass(frozen=True)
class Rows:
    """What every index and axis is in `count` rows, `[count]` each."""

    values: Mapping[str, IntArray]
    count: int
    lookup: Mapping[str, IntArray]

    def join(
        self, indices: Mapping[str, str], at: Mapping[str, IntExpression]
    ) -> tuple[IntArray, "Rows"]:
        """Repeat the rows for every assignment of `indices` under which `at` holds.

        Returns:
            The position of the row that each new row repeats, and the new rows.
        """
        sets = [np.array(indexset.parse(text), dtype=np.int64) for text in indices.values()]
        grids = [grid.reshape(-1) for grid in np.meshgrid(*sets, indexing="ij")]
        size = len(grids[0]) if grids else 1
        inner = dict(zip(indices, grids, strict=True))
        holds = np.ones((self.count, size), dtype=np.bool_)
        for axis, entry in at.items():
            holds &= self._outer(axis) == self._wanted(entry, inner)
        repeated, cells = np.nonzero(holds)
        values = {name: column[repeated] for name, column in self.values.items()}
        values |= {name: column[cells] for name, column in inner.items()}
        return repeated, Rows(values, len(repeated), self.lookup)

    def _outer(self, name: str) -> IntArray:
        return self.values[name][:, np.newaxis]

    def _wanted(self, entry: IntExpression, inner: Mapping[str, IntArray]) -> IntArray:
        outer = {name: column[:, np.newaxis] for name, column in self.values.items()}
        return np.asarray(evaluate(parse(entry), {**outer, **inner}, self.lookup))

    def take(self, chosen: IntArray) -> "Rows":
        """Keep the rows at these positions."""
        values = {name: column[chosen] for name, column in self.values.items()}
        return Rows(values, len(chosen), self.lookup)

    def array(self, entries: Sequence[IntExpression]) -> IntArray:
        """Evaluate expressions, to int64 `[count, entries]`.

        Raises:
            ExpressionError: an expression has no value.
        """
        result = np.empty((self.count, len(entries)), dtype=np.int64)
        for position, entry in enumerate(entries):
            result[:, position] = evaluate(parse(entry), self.values, self.lookup)
        return result


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
    code, span = np.zeros(len(matrix), dtype=np.int64), 1
    for column in matrix.T if len(matrix) else ():
        low, width = int(column.min()), int(column.max()) - int(column.min()) + 1
        if span * width >= 2**62:
            distinct, code = np.unique(code, return_inverse=True)
            values, column = np.unique(column, return_inverse=True)
            span, low, width = len(distinct), 0, len(values)
        code, span = code.reshape(-1) * width + (column.reshape(-1) - low), span * width
    return code

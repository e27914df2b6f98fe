"""Where families exist, as arrays no finer than what is read of them.

An expression that reads neither `layer` nor `tp` has one value for all layers and all positions on
`tp`. The rules therefore evaluate a family once for every combination of the names that they
read, not for every member on every rank. That is exact, and small.
"""

from collections.abc import Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tranship.schema import indexset
from tranship.schema.canonical import Path
from tranship.schema.expression import IntArray, evaluate, parse, variables
from tranship.schema.indexset import IndexSetError
from tranship.schema.manifest import Axis, IntExpression, Manifest
from tranship.schema.mesh import coordinates, table_arrays
from tranship.schema.moves import Environment, grid_size, index_grid
from tranship.schema.rows import number_rows, repeat_runs, spread
from tranship.schema.template import parse_template

MAX_ROWS = 2**23
"""Most rows that one family is evaluated at."""

At = Mapping[str, IntExpression]


class TooManyRows(Exception):
    """A family, or two that belong together, would have to be evaluated at more than MAX_ROWS."""

    def __init__(self, rows: int, path: Path = ()) -> None:
        self.rows = rows
        self.path = path
        super().__init__(f"{rows:,} rows")


@contextmanager
def blame(path: Path) -> Generator[None]:
    """Say that what is at `path` has too many rows, where that is not said yet."""
    try:
        yield
    except TooManyRows as error:
        raise TooManyRows(error.rows, error.path or path) from None


@dataclass(frozen=True, slots=True)
class Places:
    """Distinct combinations of values of some names: `rows` of them, one int64 array per name."""

    environment: Environment
    rows: int

    def take(self, index: IntArray) -> "Places":
        """The combinations at positions `index`."""
        return Places({name: v[index] for name, v in self.environment.items()}, len(index))


@dataclass(frozen=True, eq=False)
class World:
    """The mesh of one manifest: its axes, the ranks it speaks for (int64), and its tables."""

    axes: tuple[Axis, ...]
    ranks: IntArray
    tables: Mapping[str, IntArray]

    def distinct(self, names: AbstractSet[str]) -> IntArray:
        """Find one rank for each distinct set of coordinates on the axes `names` (or `rank`)."""
        named = [axis for axis in self.axes if axis.name in names]
        every = coordinates(named, self.ranks)
        chosen = [values for name, values in every.items() if name in names]
        number = number_rows(chosen, len(self.ranks))
        return self.ranks[np.unique(number, return_index=True)[1]]

    def spots(self, names: AbstractSet[str]) -> Places:
        """Find the distinct coordinates of the ranks on the axes `names` (or `rank`)."""
        if not names:
            return Places({}, 1)
        ranks = self.distinct(names)
        every = coordinates([axis for axis in self.axes if axis.name in names], ranks)
        return Places({n: v for n, v in every.items() if n in names}, len(ranks))

    def at_ranks(self, ranks: IntArray) -> "World":
        """The same mesh with some of its ranks alone."""
        return World(self.axes, ranks, self.tables)


def world_of(manifest: Manifest) -> World:
    """Make the mesh of a manifest whose `ranks` parse."""
    count = manifest.world_size
    ranks = range(count) if manifest.ranks is None else indexset.parse(manifest.ranks)
    return World(manifest.axes, np.array(ranks, dtype=np.int64), table_arrays(manifest.tables))


def speaks_for_all(manifest: Manifest) -> bool:
    """Whether a manifest declares all ranks of its world; only such manifests can be compiled.

    A manifest whose `ranks` do not parse declares none.
    """
    if manifest.ranks is None:
        return True
    try:
        return len(indexset.parse(manifest.ranks)) == manifest.world_size
    except IndexSetError:
        return False


def find_places(
    world: World, indices: Mapping[str, str], at: Sequence[At], read: AbstractSet[str]
) -> Places:
    """Find all values that the names `read` take together where a family exists.

    Args:
        world: The mesh.
        indices: The family's indices, and its piece's.
        at: Conditions on axes that must all hold.
        read: Names of indices and axes. Names in `at` come with them.

    Raises:
        TooManyRows: more than `MAX_ROWS` combinations.
    """
    conditions = [(axis, parse(value)) for mapping in at for axis, value in mapping.items()]
    named = set(read).union(*(variables(value) for _, value in conditions))
    if not named and not conditions:
        return Places({}, 1)
    own = {name: text for name, text in indices.items() if name in named}
    grid, points = index_grid(own), grid_size(own)
    spots = world.spots({axis for axis, _ in conditions} | (named - indices.keys()))
    spot, point = join(
        [spots.environment[axis] for axis, _ in conditions],
        [spread(evaluate(value, grid, world.tables), points) for _, value in conditions],
        (spots.rows, points),
    )
    environment = {name: values[point] for name, values in grid.items()}
    environment |= spots.take(spot).environment
    return Places(environment, len(point))


def columns(entries: Sequence[IntExpression], places: Places, world: World) -> IntArray:
    """Evaluate one expression per column, into int64 `[rows, len(entries)]`."""
    if all(isinstance(entry, int) for entry in entries):
        return np.tile(np.array(entries, dtype=np.int64), (places.rows, 1))
    result = np.empty((places.rows, len(entries)), dtype=np.int64)
    for column, entry in enumerate(entries):
        result[:, column] = evaluate(parse(entry), places.environment, world.tables)
    return result


def names_in(entries: Sequence[IntExpression]) -> frozenset[str]:
    """Names of the indices and axes that expressions read."""
    return frozenset[str]().union(*(variables(parse(e)) for e in entries if isinstance(e, str)))


def names_in_template(text: str) -> frozenset[str]:
    """Names of the indices that the holes of a template read."""
    return frozenset[str]().union(*(variables(hole) for hole in parse_template(text).holes))


def names_in_at(at: At) -> frozenset[str]:
    """Names that conditions read, and the axes that they are about."""
    return names_in(list(at.values())) | at.keys()


_FEW = 16


@dataclass(frozen=True)
class Keys:
    """A table of integer keys: one array `[rows]` for each of their parts."""

    parts: tuple[IntArray, ...]
    rows: int

    def find(self, wanted: Sequence[IntArray], rows: int) -> IntArray:
        """Find the first row that has each of `rows` wanted keys, or -1, `[rows]`."""
        if not self.parts:
            return np.full(rows, 0 if self.rows else -1, dtype=np.int64)
        if rows <= _FEW and self.rows <= 2**20:
            keys = zip(*(part.tolist() for part in wanted), strict=True)
            return np.array([self._first.get(key, -1) for key in keys], dtype=np.int64)
        both = [np.concatenate(pair) for pair in zip(self.parts, wanted, strict=True)]
        number = number_rows(both, self.rows + rows)
        first = np.full(int(number.max(initial=-1)) + 1, -1, dtype=np.int64)
        first[number[: self.rows][::-1]] = np.arange(self.rows, dtype=np.int64)[::-1]
        return first[number[self.rows :]]

    @cached_property
    def _first(self) -> dict[tuple[int, ...], int]:
        """The first row of every key; for a few wanted keys this is faster than sorting."""
        rows = dict[tuple[int, ...], int]()
        for row, key in enumerate(zip(*(part.tolist() for part in self.parts), strict=True)):
            rows.setdefault(key, row)
        return rows


def join(
    left: Sequence[IntArray], right: Sequence[IntArray], rows: tuple[int, int]
) -> tuple[IntArray, IntArray]:
    """Find all pairs (row of `left`, row of `right`) that are equal in every column.

    `rows` are the two numbers of rows. Without columns all pairs are equal. Pairs are ordered by
    left row, then right row.

    Raises:
        TooManyRows: more than `MAX_ROWS` pairs.
    """
    if not left:
        return _all_pairs(*rows)
    both = [np.concatenate([a, b]) for a, b in zip(left, right, strict=True)]
    number = number_rows(both, sum(rows))
    wanted, offered = number[: rows[0]], number[rows[0] :]
    order = np.argsort(offered, kind="stable")
    offered = offered[order]
    low = np.searchsorted(offered, wanted, side="left")
    count = np.searchsorted(offered, wanted, side="right") - low
    total = int(count.sum())
    if total > MAX_ROWS:
        raise TooManyRows(total)
    first, place = repeat_runs(low, count)
    return first, order[place]


def _all_pairs(left: int, right: int) -> tuple[IntArray, IntArray]:
    if left * right > MAX_ROWS:
        raise TooManyRows(left * right)
    first = np.repeat(np.arange(left, dtype=np.int64), right)
    return first, np.tile(np.arange(right, dtype=np.int64), left)

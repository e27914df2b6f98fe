"""Which ranks and index values are alike: one of each kind stands for all in what is proved of it.

Of an index, an expression sees only the values of its largest parts that read nothing else:
`expert % 3 * 8 + tp` cannot tell experts 4 and 7 apart. Two values of an index at which all these
parts are equal, and which the same index sets contain, are alike.

A condition `pp == stage[layer]` tells layers apart only by which ranks hold them. Where nothing
else reads `pp`, where everything on that side exists under this one condition, and where ranks of
every `pp` have the same other coordinates, exchanging two values of `pp` changes nothing that is
read. Such a condition is *nameless*: of the layer only whether some rank holds it counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from tranship.schema import indexset
from tranship.schema.expression import (
    Constant,
    Expression,
    IntArray,
    Lookup,
    Operation,
    Value,
    Variable,
    evaluate,
    parse,
    variables,
)
from tranship.schema.manifest import IntExpression, Side
from tranship.schema.mesh import RANK, coordinates
from tranship.schema.moves import Environment
from tranship.schema.plan import PlanSide
from tranship.schema.rows import number_rows


@dataclass(frozen=True)
class Reader:
    """Something that exists on one side for every assignment of `indices`, on the ranks of `at`.

    `values` are all the expressions that are read of it, over the indices and axes. Indices of one
    name mean the same in all readers that are compared.
    """

    side: Side
    indices: Mapping[str, str]
    at: Mapping[str, IntExpression]
    values: tuple[IntExpression, ...]


@dataclass(frozen=True)
class Kinds:
    """One value of each kind for every index, ascending, and one rank of each kind by side."""

    indices: Mapping[str, IntArray]
    ranks: Mapping[Side, IntArray]

    def narrowed(self, indices: Mapping[str, str]) -> dict[str, str]:
        """Index sets with their representatives alone."""
        return {
            name: indexset.to_text(
                sorted(set(indexset.parse(text)) & set(self.indices[name].tolist()))
            )
            if name in self.indices
            else text
            for name, text in indices.items()
        }


def kinds(
    readers: Sequence[Reader],
    sides: Mapping[Side, PlanSide],
    lookups: Mapping[Side, Environment],
) -> Kinds:
    """Find the kinds of all indices and ranks that `readers` tell apart, by sides with tables."""
    nameless = {side: _nameless(side, readers, sides[side]) for side in sides}
    names = dict.fromkeys(name for reader in readers for name in reader.indices)
    indices = {name: _kinds_of_index(name, readers, nameless, lookups) for name in names}
    ranks: dict[Side, IntArray] = {}
    for side, mesh in sides.items():
        own = [reader for reader in readers if reader.side is side]
        read = _read(own).union(*(reader.at for reader in own))
        ranks[side] = rank_groups(mesh, read).representatives
    return Kinds(indices, ranks)


@dataclass(frozen=True)
class Grouped:
    """Values in groups: group `k` is `values[first[k]]` to `values[first[k] + count[k] - 1]`.

    The groups are in ascending order of their first values, and ascending in themselves.
    """

    values: IntArray
    first: IntArray
    count: IntArray

    @property
    def representatives(self) -> IntArray:
        """The first value of every group, ascending."""
        return self.values[self.first]


def grouped(values: IntArray, number: IntArray) -> Grouped:
    """Group ascending values by the number of their group."""
    _, first, group = np.unique(number, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[group.reshape(-1)]
    order = np.argsort(rank, kind="stable")
    count = np.bincount(rank, minlength=len(first))
    return Grouped(values[order], np.cumsum(count) - count, count)


def index_groups(
    name: str,
    text: str,
    expressions: Mapping[Side, Iterable[IntExpression]],
    lookups: Mapping[Side, Environment],
) -> Grouped:
    """Group the values of one index by what expressions see of it."""
    members = np.array(indexset.parse(text), dtype=np.int64)
    parts = {
        (side, part)
        for side, texts in expressions.items()
        for entry in texts
        if not isinstance(entry, int)
        for part in largest_parts(parse(entry), name)
    }
    columns = [
        spread(evaluate(part, {name: members}, lookups[side]), members) for side, part in parts
    ]
    return grouped(members, number_rows(columns, len(members)))


def rank_groups(mesh: PlanSide, read: AbstractSet[str]) -> Grouped:
    """Group the ranks of a side by their coordinates on the axes (and `rank`) that are read."""
    ranks = np.arange(mesh.world_size, dtype=np.int64)
    every = coordinates(mesh.axes, ranks)
    number = number_rows([every[axis] for axis in sorted(read & every.keys())], len(ranks))
    return grouped(ranks, number)


def spread(value: Value, rows: IntArray) -> IntArray:
    """Repeat a value that does not depend on the row."""
    return np.full_like(rows, value) if isinstance(value, int) else value


def largest_parts(expression: Expression, name: str) -> frozenset[Expression]:
    """The largest parts of an expression that read the variable `name` and nothing else."""
    read = variables(expression)
    if name not in read:
        return frozenset()
    if read == frozenset({name}):
        return frozenset({expression})
    match expression:
        case Operation(_, left, right):
            return largest_parts(left, name) | largest_parts(right, name)
        case Lookup(_, index):
            return largest_parts(index, name)
        case Constant() | Variable():
            raise AssertionError("it reads one variable at most")


def _kinds_of_index(
    name: str,
    readers: Sequence[Reader],
    nameless: Mapping[Side, Mapping[str, IntArray]],
    lookups: Mapping[Side, Environment],
) -> IntArray:
    """One value of each kind of one index, ascending."""
    own = [reader for reader in readers if name in reader.indices]
    members = _members(reader.indices[name] for reader in own)
    every = np.unique(np.concatenate(list(members.values())))
    columns = [np.isin(every, some).astype(np.int64) for some in members.values()]
    seen: set[tuple[str, Side, str, Expression]] = set()
    for reader in own:
        domain, named = members[reader.indices[name]], nameless[reader.side]
        for axis, part in _parts(name, reader, named):
            key = (reader.indices[name], reader.side, axis, part)
            if key not in seen:
                seen.add(key)
                values = spread(evaluate(part, {name: domain}, lookups[reader.side]), domain)
                column = np.zeros(len(every), dtype=np.int64)
                column[np.isin(every, domain)] = (
                    np.isin(values, named[axis]) if axis in named else values
                )
                columns.append(column)
    return grouped(every, number_rows(columns, len(every))).representatives


def _parts(
    name: str, reader: Reader, nameless: Mapping[str, IntArray]
) -> Iterable[tuple[str, Expression]]:
    """What a reader sees of an index; the axis for conditions, "" for values."""
    for axis, text in reader.at.items():
        parts = largest_parts(parse(text), name)
        yield from ((axis if axis in nameless else "", part) for part in parts)
    for text in reader.values:
        if not isinstance(text, int):
            yield from (("", part) for part in largest_parts(parse(text), name))


def _members(sets: Iterable[str]) -> dict[str, IntArray]:
    return {text: np.array(indexset.parse(text), dtype=np.int64) for text in sets}


def _nameless(side: Side, readers: Sequence[Reader], mesh: PlanSide) -> dict[str, IntArray]:
    """The axes of nameless conditions, each with the coordinates that occur on it."""
    own = [reader for reader in readers if reader.side is side]
    read = _read(reader for reader in own)
    if not own or RANK in read:
        return {}
    every = coordinates(mesh.axes, np.arange(mesh.world_size, dtype=np.int64))
    conditions = [
        axis
        for axis in own[0].at
        if axis != RANK
        and axis not in read
        and len({parse(reader.at[axis]) if axis in reader.at else None for reader in own}) == 1
        and len(variables(parse(own[0].at[axis]))) <= 1
    ]
    others = sorted({axis for reader in own for axis in reader.at} - set(conditions) | read)
    fixed = [every[axis] for axis in others if axis in every]
    found: dict[str, IntArray] = {}
    for axis in sorted(conditions):
        values: IntArray = np.unique(every[axis])
        if _count([*fixed, every[axis]]) == _count(fixed) * len(values):
            found[axis] = values
        fixed.append(every[axis])
    return found


def _read(readers: Iterable[Reader]) -> set[str]:
    """The axes (and `rank`) that values read; conditions are not values."""
    found: set[str] = set()
    for reader in readers:
        for text in reader.values:
            if not isinstance(text, int):
                found |= variables(parse(text)) - reader.indices.keys()
    return found


def _count(columns: Sequence[IntArray]) -> int:
    """Number of distinct rows of a table of at least one row."""
    return int(number_rows(columns, len(columns[0])).max()) + 1 if columns else 1

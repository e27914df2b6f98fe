"""Which ranks and index values are alike: one of each kind stands for all in what is proved of it.

Of an index, an expression sees only the values of its largest parts that read nothing else:
`expert % 3 * 8 + tp` cannot tell experts 4 and 7 apart. Two values of an index at which all these
parts are equal, and which the same index sets contain, are alike.

A condition `pp == stage[layer]` tells layers apart only by which ranks hold them. Where nothing
else reads `pp`, where everything on that side exists under this one condition, and where ranks of
every `pp` have the same other coordinates, exchanging two values of `pp` changes nothing that is
read. Such a condition is *nameless*: of the layer only whether some rank holds it counts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    Variable,
    evaluate,
    parse,
    substitute,
    variables,
)
from tranship.schema.manifest import IntExpression, Side
from tranship.schema.mesh import RANK, coordinates
from tranship.schema.moves import Environment
from tranship.schema.plan import PlanSide
from tranship.schema.rows import number_rows, spread


@dataclass(frozen=True)
class Reader:
    """Something that exists on one side for every assignment of `indices`, on the ranks of `at`.

    `values` are all the expressions that are read of it, over the indices and axes. Indices of one
    name mean the same in all readers that are compared.
    """

    side: Side
    indices: Mapping[str, str]
    at: Mapping[str, Expression]
    values: tuple[Expression, ...]


def reader(
    side: Side,
    indices: Mapping[str, str],
    at: Mapping[str, IntExpression],
    values: Iterable[IntExpression],
    names: Mapping[str, str] | None = None,
) -> Reader:
    """Make a reader of texts; `names` gives indices the names under which they are compared."""
    renamed = {old: Variable(new) for old, new in (names or {}).items()}

    def parsed(text: IntExpression) -> Expression:
        return substitute(parse(text), renamed) if renamed else parse(text)

    own = {(names or {}).get(name, name): text for name, text in indices.items()}
    conditions = {axis: parsed(text) for axis, text in at.items()}
    return Reader(side, own, conditions, tuple(parsed(v) for v in values if not isinstance(v, int)))


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
    domains: Sequence[Mapping[str, str]] = (),
    apart: Mapping[str, AbstractSet[int] | None] | None = None,
) -> Kinds:
    """Find the kinds of all indices and ranks that `readers` tell apart.

    Args:
        readers: Everything that is read.
        sides: The mesh of either side.
        lookups: The tables of either side.
        domains: Index sets without anything that is read, whose members are told from others.
        apart: Values of indices that are kinds of their own; None for all values.
    """
    nameless = {side: _nameless(side, readers, sides[side]) for side in sides}
    every = [*(reader.indices for reader in readers), *domains]
    sets: dict[str, dict[str, None]] = {}
    for indices in every:
        for name, text in indices.items():
            sets.setdefault(name, {})[text] = None
    found = {
        name: _kinds_of_index(
            name, readers, _members(texts), nameless, lookups, (apart or {}).get(name, frozenset())
        )
        for name, texts in sets.items()
    }
    ranks: dict[Side, IntArray] = {}
    for side, mesh in sides.items():
        own = [reader for reader in readers if reader.side is side]
        read = _read(own).union(*(reader.at for reader in own))
        ranks[side] = rank_groups(mesh, read).representatives
    return Kinds(found, ranks)


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
        spread(evaluate(part, {name: members}, lookups[side]), len(members)) for side, part in parts
    ]
    return grouped(members, number_rows(columns, len(members)))


def rank_groups(mesh: PlanSide, read: AbstractSet[str]) -> Grouped:
    """Group the ranks of a side by their coordinates on the axes (and `rank`) that are read."""
    ranks = np.arange(mesh.world_size, dtype=np.int64)
    every = coordinates(mesh.axes, ranks)
    number = number_rows([every[axis] for axis in sorted(read & every.keys())], len(ranks))
    return grouped(ranks, number)


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
    members: Mapping[str, IntArray],
    nameless: Mapping[Side, Mapping[str, IntArray]],
    lookups: Mapping[Side, Environment],
    apart: AbstractSet[int] | None,
) -> IntArray:
    """One value of each kind of one index, ascending."""
    every = np.unique(np.concatenate(list(members.values())))
    if apart is None:
        return every
    columns = [np.isin(every, some).astype(np.int64) for some in members.values()]
    columns += [(every == value).astype(np.int64) for value in apart]
    seen: set[tuple[str, Side, str, Expression]] = set()
    for own in readers:
        if name not in own.indices:
            continue
        domain, named = members[own.indices[name]], nameless[own.side]
        for axis, part in _parts(name, own, named):
            key = (own.indices[name], own.side, axis, part)
            if key not in seen:
                seen.add(key)
                values = spread(evaluate(part, {name: domain}, lookups[own.side]), len(domain))
                column = np.zeros(len(every), dtype=np.int64)
                column[np.isin(every, domain)] = (
                    np.isin(values, named[axis]) if axis in named else values
                )
                columns.append(column)
    return grouped(every, number_rows(columns, len(every))).representatives


def _parts(
    name: str, own: Reader, nameless: Mapping[str, IntArray]
) -> Iterator[tuple[str, Expression]]:
    """What a reader sees of an index; with the axis for nameless conditions, else with ""."""
    for axis, condition in own.at.items():
        for part in largest_parts(condition, name):
            yield (axis if axis in nameless else "", part)
    for value in own.values:
        for part in largest_parts(value, name):
            yield "", part


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
        and len({reader.at.get(axis) for reader in own}) == 1
        and len(variables(own[0].at[axis])) <= 1
    ]
    others = {axis for reader in own for axis in reader.at} - set(conditions) | read
    return _independent(every, conditions, others)


def _independent(
    every: Environment, conditions: Sequence[str], others: AbstractSet[str]
) -> dict[str, IntArray]:
    """The conditions' axes with their coordinates, of which each occurs with all those of others.

    An axis that depends on others is one of these: nothing must be exchanged beside it.
    """
    fixed = [every[axis] for axis in sorted(others) if axis in every]
    found: dict[str, IntArray] = {}
    for axis in sorted(conditions):
        values: IntArray = np.unique(every[axis])
        if _count([*fixed, every[axis]]) < _count(fixed) * len(values):
            left = [other for other in conditions if other != axis]
            return _independent(every, left, others | {axis})
        found[axis] = values
        fixed.append(every[axis])
    return found


def _read(readers: Iterable[Reader]) -> set[str]:
    """The axes (and `rank`) that values read; conditions are not values."""
    found: set[str] = set()
    for reader in readers:
        for value in reader.values:
            found |= variables(value) - reader.indices.keys()
    return found


def _count(columns: Sequence[IntArray]) -> int:
    """Number of distinct rows of a table of at least one row."""
    return int(number_rows(columns, len(columns[0])).max()) + 1 if columns else 1

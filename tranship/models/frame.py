"""A layout with its options set: what its names mean, its mesh and its tables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tranship.models.algebra import Ranges
from tranship.models.declared import Layout, Number
from tranship.models.language import (
    LanguageError,
    Names,
    Scope,
    Table,
    Value,
    evaluate,
    expression,
    number,
)
from tranship.models.problems import ImpossibleError, Problems
from tranship.schema.expression import Interval, Variable, to_text
from tranship.schema.manifest import MAX_RANK_COUNT, Axis
from tranship.schema.mesh import RANK, table_arrays

Integers = tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """The mesh of a layout, its tables, and the scope in which its rules are read."""

    world_size: int
    axes: tuple[Axis, ...]
    tables: Mapping[str, Integers]
    scope: Scope

    def with_indices(self, ranges: Mapping[str, Interval], names: Names) -> Scope:
        """The scope of a rule: with indices, which stay names, and with other names."""
        inner = self.scope.plus({**{index: Variable(index) for index in ranges}, **names})
        known = Ranges({**self.scope.ranges.names, **ranges}, self.scope.ranges.tables)
        return Scope(inner.names, known)


@dataclass
class _Lazy(Mapping[str, Value]):
    """Names whose values are worked out when they are asked for.

    Values of what a model does not have are never needed, and may be impossible.
    """

    known: dict[str, Value]
    texts: Mapping[str, Number]
    ranges: Ranges
    busy: set[str] = field(default_factory=set[str])

    def __getitem__(self, name: str) -> Value:
        if name not in self.known:
            if name in self.busy:
                raise LanguageError(f"{name} is defined by itself")
            self.busy.add(name)
            try:
                self.known[name] = evaluate(self.texts[name], Scope(self, self.ranges))
            finally:
                self.busy.discard(name)
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.known, **self.texts})

    def __len__(self) -> int:
        return len({**self.known, **self.texts})

    def __contains__(self, name: object) -> bool:
        return name in self.known or name in self.texts


def frame(
    layout: Layout, file: str, sizes: Names, options: Names, problems: Problems
) -> Frame | None:
    """Work out a layout's mesh and names; None if it has none, which `problems` then tells."""
    before = len(problems.found)
    known: dict[str, Value] = {**layout.assume, **sizes, **options}
    scope = Scope(_Lazy(dict(known), layout.values, Ranges({}, {})), Ranges({}, {}))
    world_size, axes = 0, list[Axis]()
    with problems.gather(file, "/world_size"):
        world_size = number(layout.world_size, scope)
        if not 1 <= world_size <= MAX_RANK_COUNT:
            limit = f"from 1 to {MAX_RANK_COUNT:,}"
            raise ImpossibleError("TS754", f"there may be {limit} ranks, not {world_size:,}")
    for place, entry in enumerate(layout.axes):
        with problems.gather(file, f"/axes/{place}"):
            size, stride = number(entry.size, scope), number(entry.stride, scope)
            axes.append(Axis(name=entry.name, size=size, stride=stride))
    tables: dict[str, Integers] = {}
    for name in layout.tables:
        with problems.gather(file, f"/tables/{name}"):
            tables[name] = _table(layout, name, scope)
    if len(problems.found) > before:
        return None
    return _framed(layout, world_size, tuple(axes), tables, known)


def _table(layout: Layout, name: str, scope: Scope) -> Integers:
    entry = layout.tables[name]
    count = number(entry.count, scope)
    return tuple(number(entry.value, scope.plus({entry.index: n})) for n in range(count))


def _framed(
    layout: Layout,
    world_size: int,
    axes: tuple[Axis, ...],
    tables: Mapping[str, Integers],
    known: Names,
) -> Frame:
    names: dict[str, Value] = dict(known)
    names |= {a.name: Variable(a.name) if a.size > 1 else 0 for a in axes}
    names[RANK] = Variable(RANK) if world_size > 1 else 0
    names |= {name: Table(name, values) for name, values in tables.items()}
    bounds = {axis.name: (0, axis.size - 1) for axis in axes} | {RANK: (0, world_size - 1)}
    ranges = Ranges(bounds, table_arrays(tables))
    scope = Scope(_Lazy(names, layout.values, ranges), ranges)
    return Frame(world_size, tuple(axis for axis in axes if axis.size > 1), tables, scope)


def place(at: Mapping[str, Number], frame: Frame, scope: Scope) -> dict[str, int | str]:
    """Evaluate coordinates, leaving out axes that have but one.

    Raises:
        LanguageError: a coordinate has no value, or an axis does not exist.
    """
    kept = {axis.name for axis in frame.axes} | ({RANK} if frame.world_size > 1 else set[str]())
    return {axis: to_text(expression(value, scope)) for axis, value in at.items() if axis in kept}

"""What a family is folded from, and into: rows of integers, and a cover of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tranship.schema.expression import Expression, IntArray
from tranship.schema.manifest import Axis
from tranship.schema.mesh import RANK, coordinates
from tranship.schema.records import Ints

NUMBERS = "numbers"
"""The field of the numbers in names; its labels are the names that indices get from there."""


@dataclass(frozen=True)
class Domain:
    """Where members can be: ranks, or the buffers of a family, one per index values and rank.

    `indices` holds the index values and `ranks` the rank of each place, [places] each.
    """

    axes: tuple[Axis, ...]
    world_size: int
    indices: dict[str, IntArray]
    ranks: IntArray

    def axis_values(self, places: IntArray) -> dict[str, IntArray]:
        """Coordinates of the ranks of `places` on the axes and as `rank`, [places] each."""
        return coordinates(self.axes, self.ranks[places])

    @property
    def sizes(self) -> dict[str, int]:
        """How many coordinates each axis has, `rank` included."""
        return {axis.name: axis.size for axis in self.axes} | {RANK: self.world_size}


@dataclass(frozen=True)
class Field:
    """A field of the members: its integers, [rows, entries], and a label per entry."""

    name: str
    values: IntArray
    labels: tuple[str, ...]


def uniform_field(name: str, rows: list[Ints]) -> Field:
    """Make a field whose entries are all labelled with its name."""
    values = int_table(rows)
    return Field(name, values, (name,) * values.shape[1])


def int_table(rows: list[Ints]) -> IntArray:
    """Make an int64 array [rows, entries], also of rows without entries."""
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(rows[0]))


@dataclass(frozen=True)
class Rows:
    """Members: the place in a domain and the own index values of each, [rows], and their fields.

    The own index `ordinal` is in no name, and idle where it is always the same. One entry of the
    field `vanishing` may be 0 where a member is not there.
    """

    places: IntArray
    own: dict[str, IntArray]
    fields: tuple[Field, ...]
    ordinal: str = ""
    vanishing: str = ""

    def take(self, chosen: IntArray) -> "Rows":
        """Keep the rows at these positions."""
        fields = tuple(replace(field, values=field.values[chosen]) for field in self.fields)
        own = {name: values[chosen] for name, values in self.own.items()}
        return replace(self, places=self.places[chosen], own=own, fields=fields)


@dataclass(frozen=True)
class Cover:
    """One family: its index sets, `at`, and the expressions of its fields."""

    indices: dict[str, Ints]
    at: dict[str, Expression]
    fields: dict[str, tuple[Expression, ...]]

    def expressions(self) -> Iterator[Expression]:
        """Yield all expressions in order."""
        yield from self.at.values()
        for entries in self.fields.values():
            yield from entries


@dataclass(frozen=True)
class Split:
    """Part the rows by the class of their value of an index, an axis or `rank`."""

    name: str
    classes: dict[int, int]

    def parts(self, values: IntArray) -> list[IntArray]:
        """Positions of the rows of each class that occurs, given each row's value."""
        classes = np.array([self.classes[value] for value in values.tolist()], dtype=np.int64)
        return [np.flatnonzero(classes == one) for one in np.unique(classes)]


@dataclass(frozen=True)
class Members:
    """Rows, and what the steps of a cover share.

    Attributes:
        own: Own indices, without an idle ordinal, [rows] each.
        given: Indices of the domain, [rows] each.
        axes: Coordinates on the axes and as `rank`, [rows] each.
        member: Number of each row's index values, own and given, [rows].
        first: One row of each member, [members].
        entity: Number of each place's index values, [places].
    """

    domain: Domain
    rows: Rows
    own: dict[str, IntArray]
    given: dict[str, IntArray]
    axes: dict[str, IntArray]
    member: IntArray
    first: IntArray
    entity: IntArray

    @property
    def indices(self) -> dict[str, IntArray]:
        """Own and given indices, [rows] each."""
        return {**self.own, **self.given}


def find_members(domain: Domain, rows: Rows) -> Members:
    """Number the members and their entities."""
    own = {
        name: values
        for name, values in rows.own.items()
        if name != rows.ordinal or (values != values[0]).any()
    }
    given = {name: values[rows.places] for name, values in domain.indices.items()}
    axes = domain.axis_values(rows.places)
    member = combine([*own.values(), *given.values()], len(rows.places))
    first = np.unique(member, return_index=True)[1].astype(np.int64)
    entity = combine([*domain.indices.values()], len(domain.ranks))
    return Members(domain, rows, own, given, axes, member, first, entity)


def combine(values: list[IntArray], count: int) -> IntArray:
    """Number `count` rows from 0 so that equal numbers mean equal values, in the values' order."""
    code = np.zeros(count, dtype=np.int64)
    for column in values:
        distinct, position = np.unique(column, return_inverse=True)
        code = np.unique(code * len(distinct) + position, return_inverse=True)[1].astype(np.int64)
    return code

"""Names of tensors and buffers as numbers, so that they are compared by the hundred thousand.

A name is split into its texts and its numbers: `layers.{layer}.w` with layer 3, and `layers.3.w`,
are both texts `layers.`, `.w` and number 3. Two names are equal where both parts are: the rules on
names see to it that a hole is a whole number.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tranship.schema.expression import Constant, Expression, IntArray, evaluate
from tranship.schema.rows import number_rows, spread
from tranship.schema.rules.world import (
    At,
    Keys,
    Places,
    World,
    find_places,
)
from tranship.schema.template import Template, parse_template

MAX_NUMBER = 10**18 - 1
"""Largest number in a name; longer runs of digits in a text are text."""

_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,17})(?![0-9])")


@lru_cache(maxsize=65536)
def split_name(text: str) -> Template:
    """Parse a template, and make holes of the numbers in its texts."""
    template = parse_template(text)
    texts, holes = list[str](), list[Expression]()
    for place, part in enumerate(template.texts):
        pieces = _NUMBER.split(part)
        texts += pieces[::2]
        holes += [Constant(int(number)) for number in pieces[1::2]]
        holes += template.holes[place : place + 1]
    return Template(tuple(texts), tuple(holes))


def numbers_of(text: str, places: Places, world: World) -> list[IntArray]:
    """Evaluate the numbers of a name: one array per number, a row per place."""
    return [
        spread(evaluate(hole, places.environment, world.tables), places.rows)
        for hole in split_name(text).holes
    ]


@dataclass(frozen=True)
class NameTable:
    """All names with the same texts: `rows` of them.

    The parts of `keys` are coordinates on `axes`, then the numbers of the name. Row `i` is row
    `place[i]` of the `places` of family `owner[i]`.
    """

    axes: tuple[str, ...]
    keys: Keys
    owner: IntArray
    place: IntArray
    places: Mapping[int, Places]

    @property
    def rows(self) -> int:
        """Number of names, counted once for every combination of coordinates on `axes`."""
        return len(self.owner)

    def repeats(self) -> Iterator[tuple[int, int]]:
        """Find rows whose key an earlier row has: (earlier, later), one for each two owners."""
        number = number_rows(self.keys.parts, self.rows)
        first = np.unique(number, return_index=True)[1][number] if self.rows else number
        later = np.flatnonzero(first < np.arange(self.rows))
        owners = np.stack([self.owner[first[later]], self.owner[later]], axis=1)
        for one in np.unique(owners, axis=0, return_index=True)[1]:
            yield int(first[later[one]]), int(later[one])


@dataclass(frozen=True)
class Member:
    """A family as its name table needs it."""

    number: int
    name: str
    indices: Mapping[str, str]
    at: At


def name_table(members: Iterable[Member], axes: Iterable[str], world: World) -> NameTable:
    """Expand families whose names have the same texts into one table.

    `axes` must hold every axis in the members' `at`.

    Raises:
        TooManyRows: a family has too many members.
    """
    order = tuple(sorted(axes))
    keys, owners, rows = list[list[IntArray]](), list[IntArray](), list[IntArray]()
    places = dict[int, Places]()
    for member in members:
        found = find_places(world, member.indices, [member.at], {*member.indices, *order})
        places[member.number] = found
        keys.append([found.environment[a] for a in order] + numbers_of(member.name, found, world))
        owners.append(np.full(found.rows, member.number, dtype=np.int64))
        rows.append(np.arange(found.rows, dtype=np.int64))
    owner = np.concatenate(owners)
    parts = tuple(np.concatenate(part) for part in zip(*keys, strict=True))
    return NameTable(order, Keys(parts, len(owner)), owner, np.concatenate(rows), places)


def name_of(texts: Sequence[str], numbers: Sequence[IntArray], row: int) -> str:
    """Write the name that one row of numbers gives."""
    values = [str(int(column[row])) for column in numbers] + [""]
    return "".join(text + value for text, value in zip(texts, values, strict=True))

"""All members of some families, found by name and rank, and those that two lists share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tranship.compiler.diffs.names import NUMBER, Texts, name_keys
from tranship.compiler.diffs.rows import row_codes
from tranship.schema import indexset
from tranship.schema.expression import IntArray, Variable, to_text
from tranship.schema.members import Rows
from tranship.schema.mesh import RANK
from tranship.schema.template import parse_template

_NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Listed:
    """Members with names of the same texts: `n` rows.

    `family` and `row` say where each is from, `numbers` `[n, k]` and `rank` `[n]` which it is.
    """

    family: IntArray
    row: IntArray
    numbers: IntArray
    rank: IntArray

    def take(self, chosen: IntArray) -> "Listed":
        """Keep the members at these positions."""
        return Listed(
            self.family[chosen], self.row[chosen], self.numbers[chosen], self.rank[chosen]
        )


def listed(names: Sequence[str], rows: Sequence[Rows]) -> dict[Texts, Listed]:
    """List the members of families by the texts of their names.

    Raises:
        ExpressionError: a name has no value.
    """
    parts: dict[Texts, list[Listed]] = {}
    for number, (name, own) in enumerate(zip(names, rows, strict=True)):
        rank = own.values.get(RANK, np.zeros(own.count, dtype=np.int64))
        for group in name_keys(name, own.values, own.count, own.lookup):
            family = np.full(len(group.rows), number, dtype=np.int64)
            part = Listed(family, group.rows, group.numbers, rank[group.rows])
            parts.setdefault(group.texts, []).append(part)
    return {texts: _concatenated(found) for texts, found in parts.items()}


def _concatenated(parts: Sequence[Listed]) -> Listed:
    return Listed(
        np.concatenate([part.family for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.rank for part in parts]),
    )


def nothing_like(other: Listed) -> Listed:
    """A list without members, of names like those of `other`."""
    return other.take(_NOTHING)


@dataclass(frozen=True)
class Shared:
    """Positions in two lists: the members of both, pair by pair, and those of either alone."""

    old: IntArray
    new: IntArray
    old_only: IntArray
    new_only: IntArray


def shared(old: Listed, new: Listed) -> Shared:
    """Find the members that two lists have in common, by name and rank."""
    keys = [np.concatenate([x.numbers, x.rank[:, np.newaxis]], axis=1) for x in (old, new)]
    codes = row_codes(np.concatenate(keys))
    first, second = codes[: len(keys[0])], codes[len(keys[0]) :]
    _, in_old, in_new = np.intersect1d(first, second, return_indices=True)
    return Shared(
        in_old,
        in_new,
        np.flatnonzero(~np.isin(first, second)),
        np.flatnonzero(~np.isin(second, first)),
    )


def distinct(numbers: IntArray) -> IntArray:
    """Return the different rows of `[n, k]`, in order of their first occurrence."""
    _, first = np.unique(row_codes(numbers), return_index=True)
    return numbers[np.sort(first)]


def index_names(name: str, columns: int) -> list[str]:
    """Say which index each number in a family's names is; empty text for what none is."""
    template = parse_template(name)
    result: list[str] = []
    for place, text in enumerate(template.texts):
        if place:
            hole = template.holes[place - 1]
            result.append(hole.name if isinstance(hole, Variable) else str(to_text(hole)))
        result += [""] * len(NUMBER.findall(text))
    return result if len(result) == columns else [""] * columns


def members_text(name: str, numbers: IntArray) -> str:
    """Say which members of a family these are: `layer 0..35`; nothing if it has but one."""
    names = index_names(name, numbers.shape[1])
    return ", ".join(
        f"{index} {indexset.to_text(np.unique(column).tolist())}"
        for index, column in zip(names, numbers.T, strict=True)
        if index and len(column) and int(column.min()) >= 0
    )


def ranks_text(ranks: IntArray) -> str:
    """Write ranks as an index set."""
    return indexset.to_text(np.unique(ranks).tolist())

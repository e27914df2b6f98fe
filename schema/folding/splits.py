"""How to split rows that no one family covers: by the index or axis with the fewest classes.

Values of an index are of one class where their rows look the same in what is compared. The
coordinates of an axis are each a class of its own, since `at` can only ask for one of them.
"""

from collections.abc import Mapping

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.folding.rows import Members, Split, combine
from tranship.schema.indexset import to_text
from tranship.schema.mesh import RANK

MAX_SET_TEXT = 4096
"""Longest text of an index set, in characters."""


def split_uneven(members: Members) -> Split | None:
    """Split rows whose own index values do not form a product with the domain's members.

    Compared is which values of the other indices occur.
    """
    sizes = [len(np.unique(values)) for values in members.own.values()]
    if len(members.first) == int(np.prod(sizes)) * (int(members.entity.max()) + 1):
        return None
    chosen = {name: values[members.first] for name, values in members.indices.items()}
    found: list[Split] = []
    for name, values in chosen.items():
        others = combine([v for other, v in chosen.items() if other != name], len(values))
        universe = members.domain.indices.get(name, values)
        found.append(Split(name, _classes(values, others, others, universe)))
    return _fewest(found, members.indices)


def split_long(members: Members) -> Split | None:
    """Cut the first own index in two whose set takes more than `MAX_SET_TEXT` characters."""
    for name, values in members.own.items():
        distinct = np.unique(values).tolist()
        if len(to_text(distinct)) > MAX_SET_TEXT:
            half = len(distinct) // 2
            return Split(name, {value: int(n >= half) for n, value in enumerate(distinct)})
    return None


def split_column(members: Members, column: IntArray) -> Split:
    """Split rows in which `column` [rows] does not fit; compared is the column."""
    order = combine([*members.indices.values(), members.axes[RANK]], len(column))
    by_index = {name: (_other_keys(members, name), column) for name in members.indices}
    found = _splits(members, by_index, (order, column))
    return _fewest(found, {**members.indices, **members.axes})


def split_ranks(members: Members) -> Split:
    """Split rows that are on ranks which `at` cannot select; compared are ranks, or members.

    Where all members are on the same ranks, an axis is split of which these lack a coordinate.
    """
    keys = {name: _other_keys(members, name) for name in members.indices}
    by_index = {name: (key, key) for name, key in keys.items()}
    found = _splits(members, by_index, (members.member, members.member))
    everywhere = members.domain.axis_values(np.arange(len(members.domain.ranks)))
    order = sorted(
        members.axes, key=lambda n: len(np.unique(members.axes[n])) == len(np.unique(everywhere[n]))
    )
    axes = {name: members.axes[name] for name in order if name != RANK}
    return _fewest(found, {**axes, RANK: members.axes[RANK], **members.indices})


def _other_keys(members: Members, name: str) -> IntArray:
    others = [values for other, values in members.indices.items() if other != name]
    return combine([*others, members.axes[RANK]], len(members.rows.places))


def _splits(
    members: Members,
    by_index: Mapping[str, tuple[IntArray, IntArray]],
    by_axis: tuple[IntArray, IntArray],
) -> list[Split]:
    """Split by each index and axis, whose rows are compared by (order, content)."""
    by_value = [
        Split(name, _classes(values, *by_index[name], values))
        for name, values in members.indices.items()
    ]
    by_coordinate = [
        _singles(name, values)
        for name, values in members.axes.items()
        if len(set(_classes(values, *by_axis, values).values())) > 1
    ]
    return by_value + by_coordinate


def _fewest(found: list[Split], values: Mapping[str, IntArray]) -> Split:
    """Choose the first with the fewest classes, two or more; without one, part all of `values`."""
    useful = [split for split in found if len(set(split.classes.values())) > 1]
    if useful:
        return min(useful, key=lambda split: len(set(split.classes.values())))
    name, column = next((n, v) for n, v in values.items() if (v != v[0]).any())
    return _singles(name, column)


def _singles(name: str, values: IntArray) -> Split:
    return Split(name, {value: n for n, value in enumerate(np.unique(values).tolist())})


def _classes(
    values: IntArray, order: IntArray, content: IntArray, universe: IntArray
) -> dict[int, int]:
    """Number the values in `universe` by what `content` is in their rows, sorted by `order`."""
    rows = np.lexsort((order, values))
    distinct, starts = np.unique(values[rows], return_index=True)
    slices = dict(zip(distinct.tolist(), np.split(content[rows], starts[1:]), strict=True))
    kinds: dict[bytes, int] = {}
    classes: dict[int, int] = {}
    for value in np.unique(universe).tolist():
        key = slices[value].tobytes() if value in slices else b""
        classes[value] = kinds.setdefault(key, len(kinds))
    return classes

"""Two lists of buffer families: which buffers came and went, and what of the others changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tranship.compiler.diffs.change import Change, Weight
from tranship.compiler.diffs.contents import Members, members
from tranship.compiler.diffs.fields import field_findings
from tranship.compiler.diffs.listing import (
    Listed,
    distinct,
    listed,
    members_text,
    nothing_like,
    ranks_text,
    shared,
)
from tranship.compiler.diffs.rows import World, row_codes
from tranship.compiler.diffs.wording import entry_text, renaming
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Alias, BufferFamily, ConstantBuffer, Scale, Transfer
from tranship.schema.members import Rows
from tranship.schema.template import parse_template

Families = Sequence[tuple[int, BufferFamily]]
"""Families and their positions in their manifest."""


@dataclass(frozen=True)
class Side:
    """The families of one manifest that are compared, and their members."""

    families: Families
    rows: Sequence[Rows]


def side_of(families: Families, world: World) -> Side:
    """Evaluate where families are.

    Raises:
        ExpressionError: a condition or a name has no value.
    """
    ranks = world.all_rows()
    return Side(families, [ranks.join(one.indices, one.at)[1] for _, one in families])


def buffer_changes(old: Side, new: Side) -> Iterator[Change]:
    """Compare families member by member.

    Raises:
        ExpressionError: an expression has no value.
    """
    before, after = (listed([f.name for _, f in side.families], side.rows) for side in (old, new))
    gone: list[Listed] = []
    come: list[Listed] = []
    changes: list[Change] = []
    for texts in [*after, *(texts for texts in before if texts not in after)]:
        first, second = before.get(texts), after.get(texts)
        first = first or nothing_like(after[texts])
        second = second or nothing_like(before[texts])
        both = shared(first, second)
        changes += _common(old, new, first.take(both.old), second.take(both.new))
        changes += _moved(old, new, first, second)
        gone.append(first.take(_unnamed(first, second)))
        come.append(second.take(_unnamed(second, first)))
    yield from _followers(new, changes)
    yield from _come_and_gone(old, new, gone, come)


def _unnamed(own: Listed, other: Listed) -> IntArray:
    """Positions of the members whose names the other list does not have on any rank."""
    codes = row_codes(np.concatenate([own.numbers, other.numbers]))
    return np.flatnonzero(~np.isin(codes[: len(own.rank)], codes[len(own.rank) :]))


def _pairs(first: Listed, second: Listed) -> Iterator[IntArray]:
    """Positions of the members, which are the same in both, by the families that they are of."""
    codes = row_codes(np.stack([first.family, second.family], axis=1))
    for code in np.unique(codes):
        yield np.flatnonzero(codes == code)


def _common(old: Side, new: Side, first: Listed, second: Listed) -> Iterator[Change]:
    for chosen in _pairs(first, second):
        one, other = first.take(chosen), second.take(chosen)
        before, after = _members(old, one), _members(new, other)
        place, family = new.families[int(other.family[0])]
        for found, rows, weight in field_findings(before, after):
            yield Change(
                f"buffer.{found.kind}",
                weight,
                family.name,
                found.old,
                found.new,
                len(distinct(other.numbers[rows])),
                members_text(family.name, other.numbers[rows]),
                f"/buffers/{place}",
                found.detail,
            )


def _members(side: Side, chosen: Listed) -> Members:
    number = int(chosen.family[0])
    return members(side.families[number][1], side.rows[number].take(chosen.row))


def _moved(old: Side, new: Side, first: Listed, second: Listed) -> Iterator[Change]:
    """Say which buffers that both have are now on other ranks."""
    both = shared(first, second)
    names = np.concatenate([first.numbers, second.numbers])
    codes = row_codes(names)
    before, after = codes[: len(first.rank)], codes[len(first.rank) :]
    moved = np.union1d(before[both.old_only], after[both.new_only])
    moved = np.intersect1d(np.intersect1d(moved, before), after)
    heads = [np.searchsorted(np.sort(c), moved) for c in (before, after)]
    orders = [np.argsort(c, kind="stable") for c in (before, after)]
    picked = [order[head] for order, head in zip(orders, heads, strict=True)]
    for chosen in _pairs(first.take(picked[0]), second.take(picked[1])):
        one, other = first.take(picked[0][chosen]), second.take(picked[1][chosen])
        yield _moved_change(
            old.families[int(one.family[0])][1],
            *new.families[int(other.family[0])],
            other.numbers,
            (first.rank[before == moved[chosen[0]]], second.rank[after == moved[chosen[0]]]),
        )


def _moved_change(
    one: BufferFamily,
    place: int,
    other: BufferFamily,
    numbers: IntArray,
    ranks: tuple[IntArray, IntArray],
) -> Change:
    texts = _where(one, other), _where(other, other)
    if texts[0] == texts[1] or len(numbers) == 1:
        texts = ranks_text(ranks[0]), ranks_text(ranks[1])
    found = members_text(other.name, numbers)
    pointer = f"/buffers/{place}"
    count = len(distinct(numbers))
    return Change("buffer.ranks", Weight.CHANGE, other.name, *texts, count, found, pointer)


def _where(own: BufferFamily, newer: BufferFamily) -> str:
    names = renaming(own.name, newer.name)
    parts = [f"{axis} = {entry_text(value, names)}" for axis, value in own.at.items()]
    return ", ".join(parts) or "all"


_GEOMETRY = frozenset(
    {"buffer.shape", "buffer.box", "buffer.place", "buffer.order", "buffer.where"}
)


def _followers(new: Side, changes: Sequence[Change]) -> Iterator[Change]:
    """Mark what changed in scales as following from their weights, where those changed too."""
    owners = {f.name: f.encoding.of for _, f in new.families if isinstance(f.encoding, Scale)}
    texts = {parse_template(change.subject).texts for change in changes}
    for change in changes:
        owner = owners.get(change.subject)
        follows = (
            owner
            if owner and change.kind in _GEOMETRY and parse_template(owner).texts in texts
            else ""
        )
        yield replace(change, follows=follows) if follows else change


def _come_and_gone(
    old: Side, new: Side, gone: Sequence[Listed], come: Sequence[Listed]
) -> Iterator[Change]:
    left = [part for listing in gone for part in _by_family(listing)]
    found = [part for listing in come for part in _by_family(listing)]
    for other in found:
        place, family = new.families[int(other.family[0])]
        twin = next((one for one in left if _is_renamed(old, one, family, other)), None)
        if twin:
            left = [one for one in left if one is not twin]
            before = old.families[int(twin.family[0])][1]
            yield _presence("buffer.name", place, family, other, before.name, family.name)
        else:
            yield _presence(_kind(family), place, family, other, None, what_is(family))
    for one in left:
        place, family = old.families[int(one.family[0])]
        yield _presence(_kind(family), place, family, one, what_is(family), None)


def _kind(family: BufferFamily) -> str:
    """Tell what comes and goes with an update from what only lies there."""
    return "buffer" if isinstance(family.role, Transfer) else f"buffer.{family.role.kind}"


def _by_family(listing: Listed) -> Iterator[Listed]:
    for number in np.unique(listing.family):
        yield listing.take(np.flatnonzero(listing.family == number))


def _is_renamed(old: Side, one: Listed, family: BufferFamily, other: Listed) -> bool:
    before = old.families[int(one.family[0])][1]
    alike = ("at", "dtype", "shape", "strides", "kind", "layout", "pieces", "fills")
    return (
        bool(family.pieces)
        and len(one.rank) == len(other.rank)
        and all(getattr(before, name) == getattr(family, name) for name in alike)
    )


def _presence(
    kind: str, place: int, family: BufferFamily, own: Listed, old: str | None, new: str | None
) -> Change:
    numbers = distinct(own.numbers)
    found = members_text(family.name, numbers)
    quiet = isinstance(family.role, Alias | ConstantBuffer)
    weight = Weight.NOTE if quiet else Weight.CHANGE
    pointer = f"/buffers/{place}"
    return Change(kind, weight, family.name, old, new, len(numbers), found, pointer)


def what_is(family: BufferFamily) -> str:
    """Say in a few words what a buffer is: `bf16 [4096, 4096]`."""
    shape = f"[{', '.join(str(size) for size in family.shape)}]"
    role = "" if isinstance(family.role, Transfer) else f" {family.role.kind}"
    return f"{family.dtype} {shape}{role}"

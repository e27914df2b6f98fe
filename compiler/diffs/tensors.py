"""Two lists of logical tensor families: which tensors came and went, and which changed."""

from collections.abc import Iterator, Sequence

import numpy as np

from tranship.compiler.diffs.change import Change, Weight
from tranship.compiler.diffs.extras import as_text, extras
from tranship.compiler.diffs.fields import names_differ
from tranship.compiler.diffs.listing import (
    Listed,
    distinct,
    listed,
    members_text,
    nothing_like,
    shared,
)
from tranship.compiler.diffs.rows import ONE, row_codes
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Manifest, TensorFamily
from tranship.schema.members import Rows
from tranship.schema.mesh import table_arrays

_KNOWN = frozenset({"name", "indices", "shape", "tied_to"})
Families = Sequence[tuple[int, TensorFamily]]


def tensor_changes(old: Manifest, new: Manifest, *, same_tables: bool) -> Iterator[Change]:
    """Compare the logical tensors of two manifests."""
    first, second = _apart(old.tensors, new.tensors, same_tables=same_tables)
    rows = _rows(first, old), _rows(second, new)
    before, after = (
        listed([family.name for _, family in families], own)
        for families, own in zip((first, second), rows, strict=True)
    )
    for texts in [*after, *(texts for texts in before if texts not in after)]:
        one = before.get(texts) or nothing_like(after[texts])
        other = after.get(texts) or nothing_like(one)
        both = shared(one, other)
        pairs = one.take(both.old), other.take(both.new)
        codes = row_codes(np.stack([pairs[0].family, pairs[1].family], axis=1))
        for code in np.unique(codes):
            chosen = np.flatnonzero(codes == code)
            ends = pairs[0].take(chosen), pairs[1].take(chosen)
            yield from _changed((first, rows[0], ends[0]), (second, rows[1], ends[1]))
        yield from _presence(second, other.take(both.new_only), is_new=True)
        yield from _presence(first, one.take(both.old_only), is_new=False)


def _apart(
    old: Sequence[TensorFamily], new: Sequence[TensorFamily], *, same_tables: bool
) -> tuple[Families, Families]:
    """Leave out the families that both have, word for word."""
    left = list(new) if same_tables else []
    before: list[tuple[int, TensorFamily]] = []
    same: list[TensorFamily] = []
    for number, family in enumerate(old):
        if family in left:
            left.remove(family)
            same.append(family)
        else:
            before.append((number, family))
    after: list[tuple[int, TensorFamily]] = []
    for number, family in enumerate(new):
        if family in same:
            same.remove(family)
        else:
            after.append((number, family))
    return before, after


def _rows(families: Families, manifest: Manifest) -> list[Rows]:
    one = Rows({}, len(ONE.ranks), table_arrays(manifest.tables))
    return [one.join(family.indices, {})[1] for _, family in families]


_Chosen = tuple[Families, Sequence[Rows], Listed]


def _changed(old: _Chosen, new: _Chosen) -> Iterator[Change]:
    """Compare the members of two families that are of the same names."""
    numbers = new[2].numbers
    (_, one), (place, other) = old[0][int(old[2].family[0])], new[0][int(new[2].family[0])]
    count, found = len(distinct(numbers)), members_text(other.name, numbers)
    pointer = f"/tensors/{place}"
    if one.shape != other.shape:
        shapes = str(list(one.shape)), str(list(other.shape))
        yield Change(
            "tensor.shape", Weight.CHANGE, other.name, *shapes, count, found, f"{pointer}/shape"
        )
    rows = [own[1][int(own[2].family[0])].take(own[2].row) for own in (old, new)]
    ties = (one.tied_to or "", rows[0]), (other.tied_to or "", rows[1])
    differ = names_differ(*ties)
    if differ.any():
        part = numbers[differ]
        yield Change(
            "tensor.tied_to",
            Weight.CHANGE,
            other.name,
            one.tied_to,
            other.tied_to,
            len(distinct(part)),
            members_text(other.name, part),
            pointer,
        )
    before, after = extras(one, _KNOWN), extras(other, _KNOWN)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            texts = as_text(before.get(name)), as_text(after.get(name))
            yield Change(f"tensor.{name}", Weight.CHANGE, other.name, *texts, count, found, pointer)


def _presence(families: Families, own: Listed, *, is_new: bool) -> Iterator[Change]:
    for number in np.unique(own.family):
        place, family = families[int(number)]
        numbers: IntArray = own.numbers[own.family == number]
        shape = str(list(family.shape))
        yield Change(
            "tensor",
            Weight.CHANGE,
            family.name,
            None if is_new else shape,
            shape if is_new else None,
            len(distinct(numbers)),
            members_text(family.name, numbers),
            f"/tensors/{place}",
        )

"""What a manifest says of its quantization: the method, and the modules that are left out."""

from collections.abc import Iterator, Sequence

import numpy as np

from tranship.compiler.diffs.change import Change, Weight
from tranship.compiler.diffs.extras import extra_changes
from tranship.compiler.diffs.listing import (
    Listed,
    distinct,
    listed,
    members_text,
    nothing_like,
    shared,
)
from tranship.compiler.diffs.rows import ONE
from tranship.schema.manifest import Manifest, ModuleFamily, Quantization

_POINTER = "/quantization"
_KNOWN = frozenset({"method", "unquantized"})


def quantization_changes(old: Manifest, new: Manifest) -> Iterator[Change]:
    """Compare the methods of quantization, and module by module what they leave out."""
    one, other = old.quantization, new.quantization
    methods = one and one.method, other and other.method
    if methods[0] != methods[1]:
        yield Change("quantization", Weight.CHANGE, new.side, *methods, pointer=_POINTER)
    if one and other:
        yield from extra_changes(one, other, _KNOWN, "quantization", new.side, _POINTER)
    yield from _modules(_left_out(one), _left_out(other))


def _left_out(quantization: Quantization | None) -> Sequence[ModuleFamily]:
    return quantization.unquantized if quantization else ()


def _modules(old: Sequence[ModuleFamily], new: Sequence[ModuleFamily]) -> Iterator[Change]:
    before, after = _listed(old), _listed(new)
    for texts in [*after, *(texts for texts in before if texts not in after)]:
        one = before.get(texts) or nothing_like(after[texts])
        other = after.get(texts) or nothing_like(one)
        both = shared(one, other)
        yield from _presence(new, other.take(both.new_only), is_new=True)
        yield from _presence(old, one.take(both.old_only), is_new=False)


def _listed(families: Sequence[ModuleFamily]) -> dict[tuple[str, ...], Listed]:
    rows = [ONE.all_rows().join(family.indices, {})[1] for family in families]
    return listed([family.name for family in families], rows)


def _presence(families: Sequence[ModuleFamily], own: Listed, *, is_new: bool) -> Iterator[Change]:
    for number in np.unique(own.family):
        family = families[int(number)]
        numbers = distinct(own.numbers[own.family == number])
        yield Change(
            "quantization.module",
            Weight.CHANGE,
            family.name,
            None if is_new else "left unquantized",
            "left unquantized" if is_new else None,
            len(numbers),
            members_text(family.name, numbers),
            f"{_POINTER}/unquantized/{number}",
        )

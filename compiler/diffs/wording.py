"""Expressions of two families side by side: the same names for the same indices, and values."""

from collections.abc import Mapping, Sequence

import numpy as np

from tranship.schema.expression import Expression, IntArray, Variable, parse, substitute, to_text
from tranship.schema.manifest import IntExpression
from tranship.schema.template import parse_template

Renaming = Mapping[str, Expression]
"""What the indices of an older family are called in the newer one."""


def renaming(old: str, new: str) -> Renaming:
    """Tell from two names which index of the one is which of the other."""
    pairs = zip(parse_template(old).holes, parse_template(new).holes, strict=False)
    return {
        before.name: after
        for before, after in pairs
        if isinstance(before, Variable) and isinstance(after, Variable) and before != after
    }


def entries_text(entries: Sequence[IntExpression], names: Renaming) -> str:
    """Write a list of expressions: `[tp * 6144, 0]`."""
    return f"[{', '.join(entry_text(entry, names) for entry in entries)}]"


def entry_text(entry: IntExpression, names: Renaming) -> str:
    """Write an expression, with its indices called as `names` has them."""
    return str(to_text(substitute(parse(entry), names)))


def side_by_side(texts: tuple[str, str], old: IntArray, new: IntArray) -> tuple[str, str]:
    """Write two lists of expressions that differ where their values are `old` and `new`, `[n, k]`.

    Values that are the same in all rows are written as numbers. Where even the texts are the same,
    the difference is in a table: then the values of the first row stand for all.
    """
    first = _constant(old), _constant(new)
    if all(first):
        return first[0], first[1]
    if texts[0] != texts[1]:
        return texts
    return f"{old[0].tolist()} in the first", f"{new[0].tolist()} in the first"


def _constant(values: IntArray) -> str:
    same = bool(len(values)) and bool(np.all(values == values[0]))
    return str(values[0].tolist()) if same else ""


def short(name: str) -> str:
    """Return the last telling part of a name: `gate_proj` of `model.mlp.gate_proj.weight`."""
    stem = name.removesuffix(".weight")
    return stem.rpartition(".")[2] or name

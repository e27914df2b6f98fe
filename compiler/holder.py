"""A holder: one value piece of a manifest as one end of a possible edge, and how to rewrite it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

from tranship.schema import indexset
from tranship.schema.expression import (
    Constant,
    Expression,
    IntArray,
    Variable,
    parse,
    substitute,
    to_text,
)
from tranship.schema.manifest import BufferFamily, IntExpression, Piece, Side
from tranship.schema.moves import Instances
from tranship.schema.plan import Half, ScaleHalf
from tranship.schema.template import Template, parse_template, template_text

Indices = dict[str, str]
Replacements = Mapping[str, Expression]
Key = tuple[int, ...]


@dataclass(frozen=True)
class Holder:
    """A piece of a transfer buffer: which tensors it holds (`tensor`, over `indices`) and where.

    `half` has every default spelled out; its own indices are those not in the tensor's name.
    `shape` is that of the logical tensors.
    """

    side: Side
    tensor: Template
    indices: Indices
    half: Half
    shape: tuple[int, ...]
    buffer: BufferFamily
    pointer: str


def buffer_strides(buffer: BufferFamily) -> tuple[IntExpression, ...]:
    """Return the declared strides, or those of a contiguous row-major buffer."""
    if buffer.strides is not None:
        return buffer.strides
    strides: list[IntExpression] = []
    step: IntExpression = 1
    for size in reversed(buffer.shape):
        strides.append(step)
        step = _product(step, size)
    return tuple(reversed(strides))


def _product(left: IntExpression, right: IntExpression) -> IntExpression:
    if isinstance(left, int) and isinstance(right, int):
        return left * max(right, 1)
    sized = right if isinstance(right, int) else f"max({right}, 1)"
    return sized if left == 1 else f"({left}) * ({sized})"


def piece_strides(buffer: BufferFamily, piece: Piece) -> tuple[IntExpression, ...]:
    """Return the piece's strides; by default the last ones of its buffer."""
    if piece.strides is not None:
        return piece.strides
    return buffer_strides(buffer)[len(buffer.shape) - len(piece.start) :]


def rename(holder: Holder, names: Mapping[str, str]) -> Holder:
    """Rename indices throughout a holder."""
    if all(old == new for old, new in names.items()):
        return holder
    replacements: dict[str, Expression] = {old: Variable(new) for old, new in names.items()}
    holes = tuple(substitute(hole, replacements) for hole in holder.tensor.holes)
    own = {names.get(name, name): text for name, text in holder.half.indices.items()}
    return replace(
        holder,
        tensor=Template(holder.tensor.texts, holes),
        indices={names.get(name, name): text for name, text in holder.indices.items()},
        half=replace_in_half(holder.half, replacements, own),
    )


def fix_own_indices(holder: Holder, values: Mapping[str, int]) -> Holder:
    """Give all of a holder's own indices one value each."""
    replacements: dict[str, Expression] = {name: Constant(v) for name, v in values.items()}
    return replace(holder, half=replace_in_half(holder.half, replacements, {}))


def replace_in_half(half: Half, replacements: Replacements, own: Indices) -> Half:
    """Replace indices in every expression of a half, whose own indices become `own`."""
    return half.model_copy(
        update={
            "buffer": replace_in_name(half.buffer, replacements),
            "indices": own,
            "at": {axis: replace_in(value, replacements) for axis, value in half.at.items()},
            "start": replace_in_row(half.start, replacements),
            "extent": replace_in_row(half.extent, replacements),
            "origin": replace_in_row(half.origin, replacements) if half.origin else half.origin,
            "offset": replace_in(half.offset, replacements),
            "strides": replace_in_row(half.strides, replacements),
            "scale": replace_in_scale(half.scale, replacements) if half.scale else None,
        }
    )


def replace_in_scale(scale: ScaleHalf, replacements: Replacements) -> ScaleHalf:
    """Replace indices in every expression of a scale half."""
    return scale.model_copy(
        update={
            "buffer": replace_in_name(scale.buffer, replacements),
            "start": replace_in_row(scale.start, replacements),
            "extent": replace_in_row(scale.extent, replacements),
            "offset": replace_in(scale.offset, replacements),
            "strides": replace_in_row(scale.strides, replacements),
        }
    )


def replace_in(value: IntExpression, replacements: Replacements) -> IntExpression:
    """Replace indices in one expression."""
    return to_text(substitute(parse(value), replacements))


def replace_in_row(
    values: tuple[IntExpression, ...], replacements: Replacements
) -> tuple[IntExpression, ...]:
    """Replace indices in one expression per dim."""
    return tuple(replace_in(value, replacements) for value in values)


def replace_in_name(text: str, replacements: Replacements) -> str:
    """Replace indices in a name template."""
    template = parse_template(text)
    holes = tuple(substitute(hole, replacements) for hole in template.holes)
    return template_text(Template(template.texts, holes))


def common_indices(first: Indices, second: Indices) -> Indices | None:
    """Intersect two index domains with the same names; None if nothing is left."""
    shared: Indices = {}
    for name, text in first.items():
        members = set(indexset.parse(text)) & set(indexset.parse(second[name]))
        if not members:
            return None
        shared[name] = indexset.to_text(members)
    return shared


@dataclass(frozen=True)
class Uncovered:
    """How many assignments of indices others do not cover, and the first of them."""

    count: int
    first: dict[str, int]


def uncovered(indices: Indices, covers: Sequence[Indices]) -> Uncovered:
    """Find what is left of an index domain when others are taken away, index by index in order.

    Values of an index that the same domains contain are counted together.
    """
    columns = [list(domain.values()) for domain in (indices, *covers)]
    parts = [_by_cover(*texts) for texts in zip(*columns, strict=True)]
    count, first = 0, None
    for point in product(*parts):
        held = set(range(len(covers))).intersection(*(kind.covers for kind in point))
        if not held:
            count += prod(kind.count for kind in point)
            values = tuple(kind.first for kind in point)
            first = values if first is None else min(first, values)
    return Uncovered(count, dict(zip(indices, first or (), strict=count > 0)))


@dataclass(frozen=True)
class _Kind:
    """Values of one index that the same domains contain: the first, how many, and the domains."""

    first: int
    count: int
    covers: frozenset[int]


def _by_cover(text: str, *covers: str) -> list[_Kind]:
    own = indexset.parse(text)
    sets = [frozenset(indexset.parse(cover)) for cover in covers]
    found: dict[frozenset[int], list[int]] = {}
    for value in own:
        found.setdefault(frozenset(k for k, s in enumerate(sets) if value in s), []).append(value)
    return [_Kind(values[0], len(values), held) for held, values in found.items()]


def instance_keys(
    instances: Instances, names: Sequence[str], fixed: Mapping[str, int] | None = None
) -> list[Key]:
    """Tell instances of one half apart: the rank, and the values of its (or of fixed) indices."""
    constants = fixed or {}
    columns: list[IntArray] = [instances.rank]
    for name in names:
        constant = name in constants
        columns.append(
            np.full_like(instances.rank, constants[name])
            if constant
            else instances.environment[name]
        )
    return list(zip(*(column.tolist() for column in columns), strict=True))

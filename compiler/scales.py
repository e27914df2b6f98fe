"""Pair every scaled value piece with the scale piece that covers its blocks.

Values and scales are declared in two buffers. As a rule their pieces have the same indices and
ranks, and pair one to one. Folding may cut the two differently; then single ranks and single
values of a piece's own indices are paired, so that every instance finds its scales.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from tranship.compiler.holder import (
    Holder,
    Indices,
    Key,
    Replacements,
    common_indices,
    fix_own_indices,
    instance_keys,
    piece_strides,
    replace_in,
    replace_in_scale,
)
from tranship.schema import indexset
from tranship.schema.alike import Kinds, kinds, reader
from tranship.schema.boxes import cells_of, resolve_block
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.expression import (
    Constant,
    Expression,
    IntArray,
    Variable,
    evaluate,
    parse,
)
from tranship.schema.manifest import BufferFamily, IntExpression, Manifest, Piece, Scaled
from tranship.schema.mesh import RANK, table_arrays
from tranship.schema.moves import Instances, half_instances, index_grid
from tranship.schema.plan import PlanSide, ScaleHalf
from tranship.schema.template import parse_template, template_text

At = Mapping[str, IntExpression]


@dataclass(frozen=True)
class ScalePiece:
    """A scale piece in a holder's names of the tensor's indices; `own` are its other indices."""

    indices: Indices
    own: Indices
    at: At
    half: ScaleHalf


def with_scales(holder: Holder, manifest: Manifest, side: PlanSide) -> Iterator[Holder]:
    """Yield the holder itself if it is not scaled, else holders with their scales.

    Raises:
        DiagnosticError: TS404 instances that no scale piece covers.
    """
    encoding = holder.buffer.encoding
    if not isinstance(encoding, Scaled):
        yield holder
        return
    block = resolve_block(encoding.block, holder.shape)
    pieces = tuple(_scale_pieces(holder, encoding, manifest))
    found = _paired_once(holder, pieces, _sample(holder, pieces, side), block)
    if found is None:
        found = _paired_apart(holder, pieces, View(side, None, None), block)
    yield from found


@dataclass(frozen=True)
class View:
    """Where instances are looked at: everywhere, or at one of each kind of index value and rank."""

    side: PlanSide
    found: Kinds | None
    ranks: IntArray | None

    def instances(self, holder: Holder) -> Instances:
        """The holder's instances."""
        half, indices = holder.half, holder.indices
        if self.found is not None:
            half = half.model_copy(update={"indices": self.found.narrowed(half.indices)})
            indices = self.found.narrowed(indices)
        return half_instances(half, indices, self.side, self.ranks)

    def keys(
        self, holder: Holder, names: Sequence[str], fixed: Mapping[str, int] | None = None
    ) -> set[Key]:
        """Every instance, as keys over `names`."""
        return set(instance_keys(self.instances(holder), names, fixed))


def _sample(holder: Holder, pieces: Sequence[ScalePiece], side: PlanSide) -> View:
    """One of each kind (`schema/alike.py`) of what pairing tells apart."""
    half, which = holder.half, holder.side
    readers = [
        reader(
            which,
            {**holder.indices, **half.indices},
            half.at,
            (*half.start, *half.extent, *(half.origin or ())),
        )
    ]
    for piece in pieces:
        values = (*piece.half.start, *piece.half.extent)
        readers.append(reader(which, {**piece.indices, **piece.own}, piece.at, values))
    found = kinds(readers, {which: side}, {which: table_arrays(side.tables)})
    return View(side, found, found.ranks[which])


def _paired_once(
    holder: Holder, pieces: tuple[ScalePiece, ...], view: View, block: tuple[int, ...]
) -> list[Holder] | None:
    """Pair whole pieces; None if that does not do for every instance."""
    names = (*holder.indices, *holder.half.indices)
    left, result = view.keys(holder, names), list[Holder]()
    for paired in _pairs(holder, pieces, view.side):
        keys = view.keys(paired, names)
        if keys and keys <= left and _covers(paired, view, block):
            left -= keys
            result.append(paired)
    return None if left else result


def _paired_apart(
    holder: Holder, pieces: tuple[ScalePiece, ...], view: View, block: tuple[int, ...]
) -> list[Holder]:
    """Pair pieces, on single ranks and for single values of the holder's own indices if need be.

    Raises:
        DiagnosticError: TS404 instances that no scale piece covers.
    """
    names = (*holder.indices, *holder.half.indices)
    left, result = view.keys(holder, names), list[Holder]()
    for values in ({}, *_assignments(holder.half.indices)):
        if not left:
            return result
        part = fix_own_indices(holder, values) if values else holder
        for paired in _pairs(part, pieces, view.side):
            for found in _covered(paired, view, block):
                keys = view.keys(found, names, values)
                if keys and keys <= left:
                    left -= keys
                    result.append(found)
    if left:
        raise DiagnosticError([_unpaired(holder, len(left))])
    return result


def _assignments(indices: Indices) -> Iterator[dict[str, int]]:
    members = [indexset.parse(text) for text in indices.values()]
    if indices:
        for values in product(*members):
            yield dict(zip(indices, values, strict=True))


def _scale_pieces(holder: Holder, encoding: Scaled, manifest: Manifest) -> Iterator[ScalePiece]:
    wanted = parse_template(encoding.scale).texts
    for buffer in manifest.buffers:
        if buffer.encoding.kind == "scale" and parse_template(buffer.name).texts == wanted:
            for piece in buffer.pieces:
                if parse_template(piece.tensor).texts == holder.tensor.texts:
                    yield _scale_piece(holder, buffer, piece)


def _scale_piece(holder: Holder, buffer: BufferFamily, piece: Piece) -> ScalePiece:
    indices = {**buffer.indices, **piece.indices}
    tensor = parse_template(piece.tensor)
    names = dict(zip(tensor.index_names, holder.tensor.index_names, strict=True))
    replacements: dict[str, Expression] = {old: Variable(new) for old, new in names.items()}
    at = {**buffer.at, **piece.at}
    half = ScaleHalf(
        buffer=buffer.name,
        dtype=buffer.dtype,
        start=piece.start,
        extent=piece.extent,
        offset=piece.offset,
        strides=piece_strides(buffer, piece),
    )
    return ScalePiece(
        indices={names[name]: indices[name] for name in tensor.index_names},
        own={name: text for name, text in indices.items() if name not in names},
        at={axis: replace_in(value, replacements) for axis, value in at.items()},
        half=replace_in_scale(half, replacements),
    )


def _pairs(holder: Holder, pieces: tuple[ScalePiece, ...], side: PlanSide) -> Iterator[Holder]:
    """Every way to join the holder with a scale piece where both exist."""
    for piece in pieces:
        for variant in _variants(piece, holder):
            paired = _pair(holder, variant, side)
            if paired is not None:
                yield paired


def _variants(piece: ScalePiece, holder: Holder) -> Iterator[ScalePiece]:
    """The piece with its own indices named as the holder's, or else with each of their values."""
    if len(piece.own) <= len(holder.half.indices):
        names = zip(piece.own, holder.half.indices, strict=False)
        yield _replaced(piece, {old: Variable(new) for old, new in names})
    else:
        for values in _assignments(piece.own):
            yield _replaced(piece, {name: Constant(value) for name, value in values.items()})


def _replaced(piece: ScalePiece, replacements: Replacements) -> ScalePiece:
    at = {axis: replace_in(value, replacements) for axis, value in piece.at.items()}
    return ScalePiece(piece.indices, {}, at, replace_in_scale(piece.half, replacements))


def _pair(holder: Holder, piece: ScalePiece, side: PlanSide) -> Holder | None:
    """Join a holder with a scale piece where both exist."""
    shared = common_indices(holder.indices, piece.indices)
    if shared is None:
        return None
    both = _both(holder.half.at, piece.at, {**shared, **holder.half.indices}, side)
    if both is None:
        return None
    half = holder.half.model_copy(update={"scale": piece.half, "at": both})
    return replace(holder, indices=shared, half=half)


def _both(first: At, second: At, indices: Indices, side: PlanSide) -> At | None:
    """Conditions that select the ranks of both; None if one axis has two different ones."""
    grid, lookup = index_grid(indices), table_arrays(side.tables)
    for axis in set(first) & set(second):
        one, other = (evaluate(parse(value), grid, lookup) for value in (first[axis], second[axis]))
        if np.any(np.asarray(one) != np.asarray(other)):
            return None
    return {**second, **first}


def _covered(paired: Holder, view: View, block: tuple[int, ...]) -> Iterator[Holder]:
    """Yield the pair if its scales always cover its blocks, else its part on each such rank."""
    if _covers(paired, view, block):
        yield paired
        return
    if RANK in paired.half.at:
        return
    for rank in sorted({key[0] for key in view.keys(paired, ())}):
        at = {**paired.half.at, RANK: rank}
        part = replace(paired, half=paired.half.model_copy(update={"at": at}))
        if _covers(part, view, block):
            yield part


def _covers(holder: Holder, view: View, block: tuple[int, ...]) -> bool:
    """Whether the paired scales cover every block of every instance of the holder."""
    instances = view.instances(holder)
    assert instances.scale is not None
    first, count = cells_of(instances.box, instances.origin, block)
    inside = (first >= instances.scale.start) & (
        first + count <= instances.scale.start + instances.scale.extent
    )
    return bool(np.all(inside))


def _unpaired(holder: Holder, count: int) -> Diagnostic:
    name = template_text(holder.tensor)
    return Diagnostic(
        code="TS404",
        message=f"the scales of {name} in {holder.buffer.name} do not follow its values",
        at=Location(holder.side.value, holder.pointer),
        expected="for every value piece one scale piece that covers its blocks",
        found=f"none for {count} rank and index assignments",
        help="declare the scale pieces with the indices and ranks of the value pieces",
    )

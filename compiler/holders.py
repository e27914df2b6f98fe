"""Holders: every value piece of a manifest as one end of a possible edge."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tranship.schema import indexset
from tranship.schema.boxes import cells_of, resolve_block
from tranship.schema.expression import Expression, Variable, parse, substitute, to_text
from tranship.schema.manifest import (
    BufferFamily,
    IntExpression,
    Manifest,
    Part,
    Piece,
    Scaled,
    Side,
    TensorFamily,
)
from tranship.schema.moves import half_instances
from tranship.schema.plan import Half, PlanSide, ScaleHalf
from tranship.schema.template import Template, parse_template, template_text

Names = Mapping[str, str]
Indices = dict[str, str]


@dataclass(frozen=True)
class Holder:
    """A piece of a transfer buffer: which tensors it holds (`tensor`, over `indices`) and where.

    `half` has every default spelled out; its own indices are those not in the tensor's name.
    """

    side: Side
    tensor: Template
    indices: Indices
    half: Half
    buffer: BufferFamily
    pointer: str


def holders(manifest: Manifest, side: PlanSide) -> tuple[Holder, ...]:
    """Every value piece of every transfer buffer, with the scales that belong to it."""
    shapes = tensor_shapes(manifest)
    found: list[Holder] = []
    for number, buffer in enumerate(manifest.buffers):
        if buffer.role.kind != "transfer":
            continue
        for place, piece in enumerate(buffer.pieces):
            if piece.part is Part.VALUE:
                pointer = f"/buffers/{number}/pieces/{place}"
                holder = _holder(manifest, buffer, piece, pointer)
                found.extend(_with_scales(holder, manifest, side, shapes))
    return tuple(found)


def tensor_shapes(manifest: Manifest) -> dict[tuple[str, ...], tuple[TensorFamily, ...]]:
    """Declared tensor families by the literal texts of their names."""
    found: dict[tuple[str, ...], tuple[TensorFamily, ...]] = {}
    for family in manifest.tensors:
        texts = parse_template(family.name).texts
        found[texts] = (*found.get(texts, ()), family)
    return found


def _holder(manifest: Manifest, buffer: BufferFamily, piece: Piece, pointer: str) -> Holder:
    tensor = parse_template(piece.tensor)
    indices = {**buffer.indices, **piece.indices}
    named = {name: indices[name] for name in tensor.index_names}
    own = {name: text for name, text in indices.items() if name not in named}
    block = buffer.encoding.block if isinstance(buffer.encoding, Scaled) else None
    half = Half(
        buffer=buffer.name,
        dtype=buffer.dtype,
        indices=own,
        at={**buffer.at, **piece.at},
        start=piece.start,
        extent=piece.extent,
        step=piece.step,
        origin=piece.origin,
        offset=piece.offset,
        strides=piece_strides(buffer, piece),
        block=block,
    )
    return Holder(manifest.side, tensor, named, half, buffer, pointer)


def buffer_strides(buffer: BufferFamily) -> tuple[IntExpression, ...]:
    """The declared strides, or those of a contiguous row-major buffer, as expressions."""
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
    """The piece's strides; by default the last ones of its buffer."""
    dims = len(piece.start)
    return (
        piece.strides
        if piece.strides is not None
        else buffer_strides(buffer)[len(buffer.shape) - dims :]
    )


def rename(holder: Holder, names: Names) -> Holder:
    """Rename indices throughout a holder."""
    replacements: dict[str, Expression] = {old: Variable(new) for old, new in names.items()}
    tensor = Template(
        holder.tensor.texts, tuple(substitute(hole, replacements) for hole in holder.tensor.holes)
    )
    return replace(
        holder,
        tensor=tensor,
        indices={names.get(name, name): text for name, text in holder.indices.items()},
        half=rename_half(holder.half, names),
    )


def rename_half(half: Half, names: Names) -> Half:
    """Rename indices in every expression of a half."""
    if all(old == new for old, new in names.items()):
        return half
    return half.model_copy(
        update={
            "buffer": _template(half.buffer, names),
            "indices": {names.get(name, name): text for name, text in half.indices.items()},
            "at": {axis: _expression(value, names) for axis, value in half.at.items()},
            "start": _row(half.start, names),
            "extent": _row(half.extent, names),
            "origin": _row(half.origin, names) if half.origin is not None else None,
            "offset": _expression(half.offset, names),
            "strides": _row(half.strides, names),
            "scale": _rename_scale(half.scale, names) if half.scale else None,
        }
    )


def _rename_scale(scale: ScaleHalf, names: Names) -> ScaleHalf:
    return scale.model_copy(
        update={
            "buffer": _template(scale.buffer, names),
            "start": _row(scale.start, names),
            "extent": _row(scale.extent, names),
            "offset": _expression(scale.offset, names),
            "strides": _row(scale.strides, names),
        }
    )


def _expression(value: IntExpression, names: Names) -> IntExpression:
    return to_text(substitute(parse(value), {old: Variable(new) for old, new in names.items()}))


def _row(values: tuple[IntExpression, ...], names: Names) -> tuple[IntExpression, ...]:
    return tuple(_expression(value, names) for value in values)


def _template(text: str, names: Names) -> str:
    template = parse_template(text)
    replacements: dict[str, Expression] = {old: Variable(new) for old, new in names.items()}
    holes = tuple(substitute(hole, replacements) for hole in template.holes)
    return template_text(Template(template.texts, holes))


def common_indices(first: Indices, second: Indices) -> Indices | None:
    """The assignments that two index domains with the same names share; None if there is none."""
    shared: Indices = {}
    for name, text in first.items():
        members = set(indexset.parse(text)) & set(indexset.parse(second[name]))
        if not members:
            return None
        shared[name] = indexset.to_text(members)
    return shared


def _with_scales(
    holder: Holder,
    manifest: Manifest,
    side: PlanSide,
    shapes: Mapping[tuple[str, ...], tuple[TensorFamily, ...]],
) -> Iterator[Holder]:
    """The holder itself if it is not scaled; else one holder for each scale piece that fits."""
    encoding = holder.buffer.encoding
    if not isinstance(encoding, Scaled):
        yield holder
        return
    shape = shapes[holder.tensor.texts][0].shape
    block = resolve_block(encoding.block, shape)
    for buffer, piece in _scale_pieces(holder, encoding, manifest):
        paired = _pair(holder, buffer, piece)
        if paired is not None and _covers(paired, side, block):
            yield paired


def _scale_pieces(
    holder: Holder, encoding: Scaled, manifest: Manifest
) -> Iterator[tuple[BufferFamily, Piece]]:
    wanted = parse_template(encoding.scale).texts
    for buffer in manifest.buffers:
        if buffer.encoding.kind == "scale" and parse_template(buffer.name).texts == wanted:
            for piece in buffer.pieces:
                if parse_template(piece.tensor).texts == holder.tensor.texts:
                    yield buffer, piece


def _pair(holder: Holder, buffer: BufferFamily, piece: Piece) -> Holder | None:
    """Join a value holder with a scale piece, in the holder's index names."""
    tensor = parse_template(piece.tensor)
    indices = {**buffer.indices, **piece.indices}
    names = dict(zip(tensor.index_names, holder.tensor.index_names, strict=True))
    own = [name for name in indices if name not in names]
    if len(own) > len(holder.half.indices):
        return None
    names |= dict(zip(own, holder.half.indices, strict=False))
    domain = {names[name]: indices[name] for name in tensor.index_names}
    shared = common_indices(holder.indices, domain)
    if shared is None:
        return None
    scale = ScaleHalf(
        buffer=buffer.name,
        dtype=buffer.dtype,
        start=piece.start,
        extent=piece.extent,
        offset=piece.offset,
        strides=piece_strides(buffer, piece),
    )
    half = holder.half.model_copy(update={"scale": _rename_scale(scale, names)})
    return replace(holder, indices=shared, half=half)


def _covers(holder: Holder, side: PlanSide, block: tuple[int, ...]) -> bool:
    """Whether the paired scales cover every block of every instance of the holder."""
    instances = half_instances(holder.half, holder.indices, side)
    assert instances.scale is not None
    first, count = cells_of(instances.box, instances.origin, block)
    inside = (first >= instances.scale.start) & (
        first + count <= instances.scale.start + instances.scale.extent
    )
    return bool(np.all(inside))

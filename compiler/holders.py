"""Holders: every value piece of a manifest as one end of a possible edge."""

from tranship.compiler.holder import Holder, piece_strides
from tranship.compiler.number import numbered
from tranship.compiler.scales import with_scales
from tranship.schema.manifest import BufferFamily, Manifest, Part, Piece, Scaled, TensorFamily
from tranship.schema.plan import Half, PlanSide
from tranship.schema.template import parse_template


def holders(manifest: Manifest, side: PlanSide) -> tuple[Holder, ...]:
    """List every value piece of every transfer buffer, with the scales that belong to it.

    Raises:
        DiagnosticError: TS404 values whose scales are not declared with them.
    """
    manifest = numbered(manifest)
    shapes = tensor_shapes(manifest)
    found: list[Holder] = []
    for number, buffer in enumerate(manifest.buffers):
        if buffer.role.kind != "transfer":
            continue
        for place, piece in enumerate(buffer.pieces):
            if piece.part is Part.VALUE:
                holder = _holder(manifest, buffer, piece, f"/buffers/{number}/pieces/{place}")
                shape = shapes[holder.tensor.texts][0].shape
                found.extend(with_scales(holder, manifest, side, shape))
    return tuple(found)


def tensor_shapes(manifest: Manifest) -> dict[tuple[str, ...], tuple[TensorFamily, ...]]:
    """Group the declared tensor families by the literal texts of their names."""
    found: dict[tuple[str, ...], tuple[TensorFamily, ...]] = {}
    for family in numbered(manifest).tensors:
        texts = parse_template(family.name).texts
        found[texts] = (*found.get(texts, ()), family)
    return found


def _holder(manifest: Manifest, buffer: BufferFamily, piece: Piece, pointer: str) -> Holder:
    tensor = parse_template(piece.tensor)
    indices = {**buffer.indices, **piece.indices}
    named = {name: indices[name] for name in tensor.index_names}
    block = buffer.encoding.block if isinstance(buffer.encoding, Scaled) else None
    half = Half(
        buffer=buffer.name,
        dtype=buffer.dtype,
        indices={name: text for name, text in indices.items() if name not in named},
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

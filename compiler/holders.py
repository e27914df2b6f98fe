"""Holders: every value piece of a manifest as one end of a possible edge."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from tranship.compiler.holder import Holder, common_indices, piece_strides
from tranship.compiler.number import numbered
from tranship.compiler.scales import with_scales
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.expression import evaluate, parse
from tranship.schema.manifest import BufferFamily, Manifest, Part, Piece, Scaled, TensorFamily
from tranship.schema.mesh import table_arrays
from tranship.schema.moves import index_grid
from tranship.schema.plan import Half, PlanSide
from tranship.schema.template import parse_template

Texts = tuple[str, ...]


def holders(manifest: Manifest, side: PlanSide) -> tuple[Holder, ...]:
    """List every value piece of every transfer buffer, with the scales that belong to it.

    Raises:
        DiagnosticError: TS404 values whose scales are not declared with them, TS405 conditions
            that cannot be joined.
    """
    manifest = numbered(manifest)
    shapes = _tensor_families(manifest)
    found: list[Holder] = []
    for number, buffer in enumerate(manifest.buffers):
        if buffer.role.kind != "transfer":
            continue
        for place, piece in enumerate(buffer.pieces):
            pointer = f"/buffers/{number}/pieces/{place}"
            if piece.part is Part.VALUE and _exists(manifest, side, buffer, piece, pointer):
                for holder in _by_shape(_holder(manifest, buffer, piece, pointer), shapes):
                    found.extend(with_scales(holder, manifest, side))
    return tuple(found)


def _exists(
    manifest: Manifest, side: PlanSide, buffer: BufferFamily, piece: Piece, pointer: str
) -> bool:
    """Whether the conditions of a buffer and its piece can both hold on one rank.

    Raises:
        DiagnosticError: TS405, an axis that both name, differently for some indices only.
    """
    grid = index_grid({**buffer.indices, **piece.indices})
    for axis in sorted(set(buffer.at) & set(piece.at)):
        ours, theirs = (
            np.asarray(evaluate(parse(at[axis]), grid, table_arrays(side.tables)))
            for at in (piece.at, buffer.at)
        )
        same = ours == theirs
        if not same.any():
            return False
        if not same.all():
            raise DiagnosticError([_two_conditions(manifest, buffer, piece, axis, pointer)])
    return True


def _two_conditions(
    manifest: Manifest, buffer: BufferFamily, piece: Piece, axis: str, pointer: str
) -> Diagnostic:
    return Diagnostic(
        code="TS405",
        message=f"a piece of {piece.tensor} limits axis {axis} otherwise than its buffer",
        at=Location(manifest.side.value, f"{pointer}/at/{axis}"),
        expected=f"{buffer.at[axis]}, as the buffer does",
        found=str(piece.at[axis]),
        help="name each axis once, in the buffer or in the piece",
    )


def _tensor_families(manifest: Manifest) -> dict[Texts, tuple[TensorFamily, ...]]:
    """Group the declared tensor families by the literal texts of their names."""
    found: dict[Texts, tuple[TensorFamily, ...]] = {}
    for family in manifest.tensors:
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
    return Holder(manifest.side, tensor, named, half, (), buffer, pointer)


def _by_shape(
    holder: Holder, families: Mapping[Texts, tuple[TensorFamily, ...]]
) -> Iterator[Holder]:
    """Divide a holder by the declared families that its tensors belong to."""
    for family in families[holder.tensor.texts]:
        declared = parse_template(family.name).index_names
        names = dict(zip(declared, holder.tensor.index_names, strict=True))
        domain = {names[name]: family.indices[name] for name in declared}
        shared = common_indices(holder.indices, domain)
        if shared is not None:
            yield replace(holder, indices=shared, shape=family.shape)

"""Expand a manifest's families into records, one per tensor, and one per buffer on one rank.

A family stands for a member per assignment of its indices. A buffer is on the ranks whose
coordinates equal its `at`; a piece or fill is in the buffers where its own `at` holds as well,
once per assignment of its own indices.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from tranship.schema import indexset
from tranship.schema.expression import ExpressionError, IntArray
from tranship.schema.manifest import (
    Alias,
    BufferFamily,
    ConstantBuffer,
    Derived,
    Encoding,
    Fill,
    Manifest,
    Piece,
    Plain,
    Quantization,
    Role,
    Scaled,
    TensorFamily,
    Transfer,
)
from tranship.schema.members import Rows
from tranship.schema.mesh import coordinates, table_arrays
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    Ints,
    PieceRecord,
    QuantizationRecord,
    RoleRecord,
    TensorRecord,
    contiguous_strides,
)


def expand(manifest: Manifest, ranks: Iterable[int] | None = None) -> Declaration:
    """List every tensor of `manifest`, and every buffer of `ranks`, sorted.

    Pieces and fills with an extent of 0 are left out; buffers of no elements are not.

    Args:
        manifest: A manifest without errors (`check.py` finds them).
        ranks: Which of the ranks that the manifest speaks for; all of them by default.

    Raises:
        ExpressionError: an expression has no value.
        TemplateError: a name does not parse.
        ValueError: the manifest does not speak for one of `ranks`.
    """
    spoken_for = declared_ranks(manifest)
    chosen = spoken_for if ranks is None else tuple(sorted(set(ranks)))
    if not set(chosen) <= set(spoken_for):
        raise ValueError("the manifest does not speak for all of these ranks")
    lookup = table_arrays(manifest.tables)
    rows = coordinates(manifest.axes, np.array(chosen, dtype=np.int64))
    mesh = Rows(rows, len(chosen), lookup)
    tensors = (record for family in manifest.tensors for record in expand_tensors(family, lookup))
    buffers = (record for family in manifest.buffers for record in _buffers(family, mesh))
    return Declaration(
        side=manifest.side,
        world_size=manifest.world_size,
        ranks=chosen,
        axes=manifest.axes,
        tensors=tuple(sorted(tensors)),
        buffers=tuple(sorted(buffers)),
        framework=manifest.framework,
        quantization=_quantization(manifest.quantization),
    )


def _quantization(declared: Quantization | None) -> QuantizationRecord | None:
    if declared is None:
        return None
    families = [
        TensorFamily(name=module.name, indices=module.indices, shape=())
        for module in declared.unquantized
    ]
    names = {record.name for family in families for record in expand_tensors(family, {})}
    return QuantizationRecord(declared.method, tuple(sorted(names)))


def declared_ranks(manifest: Manifest) -> Ints:
    """Return the ranks that `manifest` speaks for, ascending."""
    if manifest.ranks is None:
        return tuple(range(manifest.world_size))
    return indexset.parse(manifest.ranks)


def declared_buffers(manifest: Manifest, rank: int) -> tuple[BufferRecord, ...]:
    """List the buffers of a rank; there are none if the manifest does not speak for it.

    Raises:
        ExpressionError, TemplateError: as `expand`.
    """
    return expand(manifest, [rank] if rank in declared_ranks(manifest) else []).buffers


def expand_tensors(family: TensorFamily, lookup: Mapping[str, IntArray]) -> Iterator[TensorRecord]:
    """Yield the tensors of one family.

    Raises:
        ExpressionError: an expression has no value.
        TemplateError: a name does not parse.
    """
    _, rows = Rows({}, 1, lookup).join(family.indices, {})
    names = rows.names(family.name)
    ties = rows.names(family.tied_to or "")
    for name, tie in zip(names, ties, strict=True):
        yield TensorRecord(name, family.shape, tie)


def _buffers(family: BufferFamily, mesh: Rows) -> Iterator[BufferRecord]:
    _, rows = mesh.join(family.indices, family.at)
    names = rows.names(family.name)
    shapes = rows.ints(family.shape)
    strides = (
        [contiguous_strides(shape) for shape in shapes]
        if family.strides is None
        else rows.ints(family.strides)
    )
    roles, encodings = _roles(family.role, rows), _encodings(family.encoding, rows)
    pieces = _grouped(rows.count, (_pieces(piece, rows, strides) for piece in family.pieces))
    fills = _grouped(rows.count, (_fills(fill, rows) for fill in family.fills))
    for row, rank in enumerate(rows.values["rank"].tolist()):
        yield BufferRecord(
            rank,
            names[row],
            family.dtype,
            shapes[row],
            strides[row],
            family.kind,
            roles[row],
            encodings[row],
            family.layout,
            tuple(sorted(pieces[row])),
            tuple(sorted(fills[row])),
        )


T = TypeVar("T")


def _grouped(count: int, members: Iterable[Iterable[tuple[int, T]]]) -> list[list[T]]:
    groups: list[list[T]] = [[] for _ in range(count)]
    for family in members:
        for row, record in family:
            groups[row].append(record)
    return groups


def _roles(role: Role, rows: Rows) -> list[RoleRecord]:
    match role:
        case Transfer():
            return [RoleRecord()] * rows.count
        case ConstantBuffer(reason=reason):
            return [RoleRecord("constant", reason=reason)] * rows.count
        case Alias(of=of):
            return [RoleRecord("alias", of=name) for name in rows.names(of)]
        case Derived(recipe=recipe, inputs=inputs):
            named = zip(*(rows.names(name) for name in inputs), strict=True)
            return [RoleRecord("derived", recipe, names) for names in named]


def _encodings(encoding: Encoding, rows: Rows) -> list[EncodingRecord]:
    match encoding:
        case Plain():
            return [EncodingRecord()] * rows.count
        case Scaled(block=block, scale=scale, scale_values=accepted):
            names = rows.names(scale)
            return [EncodingRecord("scaled", block, name, accepted) for name in names]
        case _:
            return [EncodingRecord("scale", of=name) for name in rows.names(encoding.of)]


def _pieces(
    piece: Piece, buffers: Rows, buffer_strides: list[Ints]
) -> Iterator[tuple[int, PieceRecord]]:
    dims = len(piece.start)
    owner, rows = buffers.join(piece.indices, piece.at)
    some = np.flatnonzero((rows.array(piece.extent) > 0).all(axis=1))
    owner, rows = owner[some], rows.take(some)
    owners: list[int] = owner.tolist()
    strides = (
        [_last(buffer_strides[row], dims, piece.tensor) for row in owners]
        if piece.strides is None
        else rows.ints(piece.strides)
    )
    step = piece.step or (1,) * dims
    columns = zip(
        owners,
        rows.names(piece.tensor),
        rows.ints(piece.start),
        rows.ints(piece.extent),
        rows.array([piece.offset])[:, 0].tolist(),
        strides,
        rows.ints(piece.origin or (0,) * dims),
        strict=True,
    )
    for row, tensor, start, extent, offset, stride, origin in columns:
        yield (
            row,
            PieceRecord(tensor, piece.part, start, extent, step, offset, stride, origin),
        )


def _last(strides: Ints, dims: int, tensor: str) -> Ints:
    if len(strides) < dims:
        raise ExpressionError(
            f"no strides for a piece of {tensor}: it has more dims than its buffer"
        )
    return strides[len(strides) - dims :]


def _fills(fill: Fill, buffers: Rows) -> Iterator[tuple[int, FillRecord]]:
    owner, rows = buffers.join(fill.indices, fill.at)
    some = np.flatnonzero((rows.array(fill.sizes) > 0).all(axis=1))
    rows = rows.take(some)
    columns = zip(
        owner[some].tolist(),
        rows.array([fill.offset])[:, 0].tolist(),
        rows.ints(fill.sizes),
        rows.ints(fill.strides),
        strict=True,
    )
    value = -1 if fill.value is None else fill.value
    for row, offset, sizes, strides in columns:
        yield row, FillRecord(offset, sizes, strides, value, fill.reason or "")

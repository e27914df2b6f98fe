"""A model as one rank would hold it whole, and what parts of it hold of its logical tensors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tranship.runtime.frameworks.megatron.keys import Keys, keys_of
from tranship.runtime.frameworks.megatron.sharding import Shard
from tranship.runtime.frameworks.tracing.boxes import Box, View, boxes, intersect
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Part
from tranship.schema.records import (
    BufferRecord,
    FillRecord,
    Ints,
    PieceRecord,
    TensorRecord,
    contiguous_strides,
)

PADDING = "rows that pad the vocabulary"


@dataclass(frozen=True, slots=True)
class Whole:
    """What a manifest declares of the whole model: its buffers, its tensors, both by name."""

    buffers: Mapping[str, BufferRecord]
    tensors: Mapping[str, TensorRecord]
    keys: Keys


def read_whole(manifest: Manifest, endings: Mapping[str, str]) -> Whole:
    """Read a manifest of a model on one rank; `endings` are as in `keys.keys_of`.

    Raises:
        DiagnosticError: TS866, it is of several ranks, or not plain, or no name ends as one of
            `endings` says.
    """
    if manifest.world_size != 1:
        message = f"the manifest of the whole model is of {manifest.world_size} ranks"
        advice = "make it with all parallel sizes 1"
        raise DiagnosticError([Diagnostic("TS866", message, help=advice)])
    declared = expand(manifest)
    buffers = {record.name: record for record in declared.buffers}
    findings = [*_encoded(buffers), *_useless(endings, buffers)]
    if findings:
        raise DiagnosticError(findings)
    tensors = {record.name: record for record in declared.tensors}
    return Whole(buffers, tensors, keys_of(buffers, endings))


def _encoded(buffers: Mapping[str, BufferRecord]) -> Iterator[Diagnostic]:
    for name, record in buffers.items():
        row_major = record.strides == contiguous_strides(record.shape)
        if record.encoding.kind != "plain" or not row_major:
            message = f"the manifest of the whole model does not hold {name!r} plainly"
            yield Diagnostic("TS866", message, help="make it without a quantization")


def _useless(
    endings: Mapping[str, str], buffers: Mapping[str, BufferRecord]
) -> Iterator[Diagnostic]:
    known = {text for name in buffers for text in (name, *keys_of([name], {}).names)}
    for old, new in endings.items():
        if not any(text == new or text.endswith("." + new) for text in known):
            message = f"keys that end in {old!r} are renamed, but no name ends in {new!r}"
            yield Diagnostic("TS866", message)


def pieces_of(
    shard: Shard, held: BufferRecord, whole: Whole, natural: Ints
) -> Iterator[PieceRecord]:
    """Yield what a shard of the whole buffer `held` holds of its logical tensors.

    `natural` are the strides of the rank's tensor: a dim of one element gets its stride.
    """
    ones = (1,) * len(shard.shape)
    own = Box(shard.start, shard.extent, ones, shard.offset, shard.strides)
    for piece in held.pieces:
        shape = whole.tensors[piece.tensor].shape
        for box in _boxes(piece, held.shape, shape):
            if common := intersect(box, own):
                for part in boxes(common[0], shape, common[1]):
                    yield _piece(piece.tensor, part, natural)


def _boxes(piece: PieceRecord, held: Ints, shape: Ints) -> tuple[Box, ...]:
    """Return a piece as boxes of the buffer of shape `held`, with their places in its tensor."""
    units = contiguous_strides(shape)
    steps = tuple(step * unit for step, unit in zip(piece.step, units, strict=True))
    first = sum(start * unit for start, unit in zip(piece.start, units, strict=True))
    there = View(first, piece.extent, steps)
    return boxes(View(piece.offset, piece.extent, piece.strides), held, there)


def _piece(tensor: str, box: Box, natural: Ints) -> PieceRecord:
    dims = len(box.start)
    strides = tuple(
        by if extent > 1 else default
        for by, extent, default in zip(
            box.strides, box.extent, ((0,) * dims + natural)[-dims:] if dims else (), strict=True
        )
    )
    zeros = (0,) * dims
    return PieceRecord(
        tensor, Part.VALUE, box.start, box.extent, box.step, box.offset, strides, zeros
    )


def padding_of(shard: Shard, held: BufferRecord) -> FillRecord | None:
    """Return the rows of a padded shard behind the last that a logical tensor has."""
    if not shard.padded:
        return None
    below = max(shard.start[0], rows_held(held))
    count = shard.start[0] + shard.extent[0] - below
    if count <= 0:
        return None
    offset = shard.offset + (below - shard.start[0]) * shard.strides[0]
    return FillRecord(offset, (count, *shard.extent[1:]), shard.strides, reason=PADDING)


def rows_held(held: BufferRecord) -> int:
    """Return the number of rows of a whole buffer up to the last that a logical tensor has."""
    row = held.strides[0]
    return max((piece.offset // row + piece.extent[0] for piece in held.pieces), default=0)

"""Declare what one rank of a live Megatron-core model holds."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from torch import Tensor, nn

from tranship.runtime.bind import location
from tranship.runtime.dtypes import TORCH_DTYPES, schema_dtype
from tranship.runtime.frameworks.held import RECOMPUTED, Held
from tranship.runtime.frameworks.megatron.block_scaled import (
    BLOCK,
    CODES,
    SCALES,
    BlockScaled,
    CutBlock,
    block_scaled,
    is_quantized,
    part_name,
    scale_padding,
    scale_piece,
)
from tranship.runtime.frameworks.megatron.chunks import Chunk, numbered
from tranship.runtime.frameworks.megatron.sharding import Shard, shards_of
from tranship.runtime.frameworks.megatron.whole import (
    Whole,
    padding_of,
    pieces_of,
    read_whole,
    rows_held,
)
from tranship.runtime.live import local_tensor
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, report_first
from tranship.schema.manifest import Axis, Framework, Kind, Manifest, Side
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    PieceRecord,
    RoleRecord,
    TensorRecord,
    contiguous_strides,
)

SAME_CONFIG = "make the manifest of the whole model from the config.json that the trainer has"


@dataclass(frozen=True, slots=True)
class _Rank:
    """Whose declaration it is, what the whole model is, and what is wrong."""

    rank: int
    whole: Whole
    findings: list[Diagnostic] = field(default_factory=list[Diagnostic])

    def report(self, code: str, message: str, advice: str | None = None) -> None:
        """Note a problem."""
        where = location(Side.SENDER, self.rank)
        self.findings.append(Diagnostic(code, message, where, help=advice))


def megatron_declaration(
    chunks: Sequence[nn.Module],
    whole: Manifest,
    *,
    rank: int,
    world_size: int,
    axes: Sequence[Axis] = (),
    names: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
) -> Declaration:
    """Declare the parameters and buffers of a rank's model chunks.

    Parameters and persistent buffers are transferred, each in its own dtype; the embedding that the
    last pipeline stage holds once more is held there, too. Buffers outside of the modules' state
    are constant. A tensor with several names has memory under the first of them only. Codes and
    scales of parameters in blocks of FP8 are buffers of their own. `chunks.megatron_tensors` gives
    the memory by the same names. The first rank declares all tensors of `whole`, so that what no
    rank holds is found when the ranks' declarations are merged; the others declare what they hold.

    Args:
        chunks: The rank's model chunks in the order of their virtual stages, wrapped or not, with
            Megatron's parallel state initialized.
        whole: The same model on one rank, under the names that Megatron-core with Transformer
            Engine gives its parameters (layout `megatron` with all parallel sizes 1).
        rank: This rank among the senders.
        world_size: Number of sender ranks.
        axes: Axes of the mesh, as `mesh.megatron_axes` makes them, so that the ranks' declarations
            fold into expressions over these.
        names: Ends of Megatron's checkpoint keys, in whole parts, and what the names of these
            tensors end in in `whole`, where they differ (`mlp.gate.weight`: `mlp.router.weight`).
        without: Modules of which nothing is declared, by their names in a chunk, such as `mtp`.

    Raises:
        DiagnosticError: TS860 to TS867; everything that does not fit.
        ValueError: there is no chunk.
    """
    found = _Rank(rank, read_whole(whole, names or {}))
    buffers: list[BufferRecord] = []
    for chunk in numbered(chunks):
        buffers += _chunk(chunk, found, without)
    if found.findings:
        where = location(Side.SENDER, rank).file
        raise DiagnosticError(report_first(found.findings, lambda finding: finding, where))
    version = importlib.import_module("megatron.core").__version__
    return Declaration(
        side=Side.SENDER,
        world_size=world_size,
        ranks=(rank,),
        axes=tuple(axes),
        tensors=_tensors(found, buffers),
        buffers=tuple(sorted(buffers)),
        framework=Framework(name="megatron", version=str(version)),
    )


def _chunk(chunk: Chunk, found: _Rank, without: Sequence[str]) -> Iterator[BufferRecord]:
    left_out = tuple(f"{chunk.prefix}{module}." for module in without)
    held = [item for item in chunk.held() if not item.name.startswith(left_out)]
    # Megatron names tensors as the chunk alone does.
    tensors = {item.name.removeprefix(chunk.prefix): item.tensor for item in held}
    shards = shards_of(chunk.model, tensors)
    for item in held:
        yield from _buffers(item, shards.get(item.name.removeprefix(chunk.prefix), ()), found)


def _buffers(item: Held, shards: Sequence[Shard], found: _Rank) -> Iterator[BufferRecord]:
    """Yield the buffers that one parameter or buffer of a chunk is."""
    aliased = item.name != item.original
    if item.persistent and not aliased and not _placed(item, shards, found):
        return
    if is_quantized(item.tensor):
        # Of another name of such a parameter there is no memory to declare.
        if not aliased:
            yield from _quantized(item, shards, found)
        return
    local = local_tensor(item.tensor)
    if local.dtype not in TORCH_DTYPES.values():
        found.report("TS863", f"{item.name!r} is {local.dtype}, which no buffer may hold")
        return
    role = RoleRecord()
    if aliased:
        role = RoleRecord("alias", of=item.original)
    elif not item.persistent:
        role = RoleRecord("constant", reason=RECOMPUTED)
    record = replace(_record(item.name, local, item.kind, found.rank), role=role)
    yield _filled(record, shards, found) if role.kind == "transfer" else record


def _quantized(item: Held, shards: Sequence[Shard], found: _Rank) -> Iterator[BufferRecord]:
    """Yield the buffers of a parameter in FP8, if it is in blocks of 128 x 128."""
    scaled = block_scaled(item.tensor)
    if scaled is None:
        message = f"{item.name!r} is a {type(item.tensor).__name__} of a kind not known"
        found.report("TS867", message, "keep it in BF16, or in FP8 with blocks of 128 x 128")
        return
    yield from _scaled(item, scaled, shards, found)


def _record(
    name: str, local: Tensor, kind: Kind, rank: int, role: RoleRecord | None = None
) -> BufferRecord:
    shape = tuple(local.shape)
    strides = contiguous_strides(shape) if local.is_contiguous() else local.stride()
    return BufferRecord(
        rank, name, schema_dtype(local.dtype), shape, strides, kind, role or RoleRecord()
    )


def _placed(item: Held, shards: Sequence[Shard], found: _Rank) -> bool:
    """Whether every shard of a tensor is a part of a tensor of the whole model."""
    if not shards:
        message = f"Megatron's sharded_state_dict does not tell what {item.name!r} is a part of"
        found.report("TS862", message, "leave its module out, if nothing receives it")
    return bool(shards) and all(_fits(item.name, shard, found) for shard in shards)


def _fits(name: str, shard: Shard, found: _Rank) -> bool:
    keys = found.whole.keys
    numbered = f"{shard.key!r}" + (f" number {list(shard.numbers)}" if shard.numbers else "")
    counts = keys.counts(shard.key, shard.numbers)
    if counts is not None and counts != shard.counts:
        message = f"{name!r}: Megatron has {list(shard.counts)} of {shard.key!r}"
        found.report("TS861", f"{message}, the whole model {list(counts)}", SAME_CONFIG)
        return False
    target = keys.find(shard.key, shard.numbers)
    if target is None:
        close = keys.close(shard.key, shard.numbers)
        message = f"{name!r}, to Megatron {numbered}, is not in the whole model"
        found.report("TS860", message, f"nearest are {', '.join(close)}" if close else None)
        return False
    held = found.whole.buffers[target]
    if not _same_shape(shard, held):
        message = f"{name!r} is a part of a tensor of shape {list(shard.shape)}"
        message += f", {target!r} of the whole model is {list(held.shape)}"
        found.report("TS861", message, SAME_CONFIG)
        return False
    return True


def _same_shape(shard: Shard, held: BufferRecord) -> bool:
    """Whether shapes are equal, but for the padding of a padded tensor."""
    if shard.shape == held.shape:
        return True
    same = shard.padded and len(shard.shape) == len(held.shape)
    return same and shard.shape[1:] == held.shape[1:] and shard.shape[0] >= rows_held(held)


def _filled(record: BufferRecord, shards: Sequence[Shard], found: _Rank) -> BufferRecord:
    """Add pieces and fills, and check that they make up the buffer."""
    pieces, fills = _contents(record, shards, found)
    covered = sum(prod(piece.extent) for piece in pieces)
    covered += sum(prod(fill.sizes) for fill in fills)
    if missing := prod(record.shape) - covered:
        message = f"{missing:,} elements of {record.name!r} are of no tensor of the checkpoint"
        found.report("TS864", message)
    return replace(record, pieces=pieces, fills=fills)


def _contents(
    record: BufferRecord, shards: Sequence[Shard], found: _Rank
) -> tuple[tuple[PieceRecord, ...], tuple[FillRecord, ...]]:
    whole = found.whole
    pieces: list[PieceRecord] = []
    fills: list[FillRecord] = []
    for shard in shards:
        target = whole.keys.find(shard.key, shard.numbers)
        assert target is not None, "a shard that was placed"
        held = whole.buffers[target]
        pieces += pieces_of(shard, held, whole, record.strides)
        if padding := padding_of(shard, held):
            fills.append(padding)
    return tuple(sorted(pieces)), tuple(sorted(fills))


def _scaled(
    item: Held, scaled: BlockScaled, shards: Sequence[Shard], found: _Rank
) -> Iterator[BufferRecord]:
    """Yield the codes of a parameter in blocks of FP8, and their scales."""
    names = part_name(item.name, CODES), part_name(item.name, SCALES)
    codes = _record(names[0], scaled.codes, Kind.ATTRIBUTE, found.rank)
    scales = _record(names[1], scaled.scales, Kind.ATTRIBUTE, found.rank)
    codes = _filled(codes, shards, found)
    try:
        pieces = [
            scale_piece(piece, found.whole.tensors[piece.tensor].shape, scaled)
            for piece in codes.pieces
        ]
    except CutBlock:
        message = f"{item.name!r} does not hold whole blocks of {BLOCK} x {BLOCK} of its tensors"
        found.report("TS865", message, "keep it in BF16: others hold the rest of a block")
        return
    padding = scale_padding(scaled)
    scaling = EncodingRecord("scaled", (BLOCK, BLOCK), scales.name, "any")
    yield replace(codes, encoding=scaling)
    yield replace(
        scales,
        encoding=EncodingRecord("scale", of=codes.name),
        pieces=tuple(sorted(pieces)),
        fills=(padding,) if padding else (),
    )


def _tensors(found: _Rank, buffers: Sequence[BufferRecord]) -> tuple[TensorRecord, ...]:
    known = found.whole.tensors
    if found.rank == 0:
        return tuple(sorted(known.values()))
    held = {piece.tensor for record in buffers for piece in record.pieces}
    ties = {known[name].tied_to for name in held} - {""}
    return tuple(sorted(known[name] for name in held | ties))

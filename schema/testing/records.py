"""Declare what a case says, buffer by buffer and rank by rank, and the policy that it needs."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from tranship.schema.dtypes import DType
from tranship.schema.manifest import Axis, Kind, Part, Side
from tranship.schema.policy import POLICY_FORMAT, Allowance, Policy, Unused
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    Ints,
    PieceRecord,
    RoleRecord,
    TensorRecord,
    contiguous_strides,
)
from tranship.schema.testing.cases import (
    UNUSED_TENSOR,
    Case,
    Encoding,
    Extra,
    Holding,
    LogicalTensor,
    SideCase,
    lossy_edge,
)
from tranship.schema.testing.shards import Shard, shard_of

PADDING = 3
"""Elements of padding behind each row of a padded buffer."""

HeldPart = tuple[str, Ints, Shard]
"""A tensor, its global shape, and what of it a piece holds."""


def declaration_of(case: Case, side: Side) -> Declaration:
    """Declare one side of a case."""
    own = case.sender if side is Side.SENDER else case.receiver
    has_unused = case.has_unused and side is Side.SENDER
    records = [
        record
        for rank in range(own.world_size)
        for record in _rank_records(case, own, side, rank, has_unused=has_unused)
    ]
    tensors = [
        TensorRecord(tensor.fqn(layer), tensor.shape, _tie(case, tensor, layer))
        for tensor in case.tensors
        for layer in range(case.layers)
    ] + ([TensorRecord(UNUSED_TENSOR, (4,))] if has_unused else [])
    ranks = tuple(range(own.world_size))
    return Declaration(
        side, own.world_size, ranks, axes_of(own), tuple(sorted(tensors)), tuple(sorted(records))
    )


def policy_of(case: Case) -> Policy | None:
    """Allow every lossy edge of a case, and its unused tensor; None where nothing needs it."""
    reason = "drawn at random"
    lines: dict[Allowance, None] = {}
    pairs = zip(case.tensors, case.sender.holdings, case.receiver.holdings, strict=True)
    for tensor, sender, receiver in pairs:
        edge = lossy_edge(sender.encoding, receiver.encoding)
        if edge is not None:
            line = Allowance(
                edge=edge,
                tensors=f"model.layers.*.{tensor.name}.weight",
                sender_dtype=sender.encoding.dtype,
                receiver_dtype=receiver.encoding.dtype,
                reason=reason,
            )
            lines[line] = None
    unused = (Unused(tensors=UNUSED_TENSOR, reason=reason),) if case.has_unused else ()
    if not (lines or unused):
        return None
    return Policy(format=POLICY_FORMAT, allow=tuple(lines), unused=unused)


def axes_of(side: SideCase) -> tuple[Axis, ...]:
    """The pipeline axis outermost, then the mesh axes in order, and one over all of them."""
    inner = prod(side.mesh)
    found = [Axis(name="pp", size=side.stages, stride=inner)]
    if any(holding.joint for holding in side.holdings):
        found.append(Axis(name="joint", size=inner, stride=1))
    for number, size in enumerate(side.mesh):
        inner //= size
        found.append(Axis(name=f"axis{number}", size=size, stride=inner))
    return tuple(found)


def _tie(case: Case, tensor: LogicalTensor, layer: int) -> str:
    targets = [other for other in case.tensors if other.name == tensor.tied_to]
    return targets[0].fqn(layer) if targets else ""


def _rank_records(
    case: Case, own: SideCase, side: Side, rank: int, *, has_unused: bool
) -> Iterator[BufferRecord]:
    stage, position = divmod(rank, prod(own.mesh))
    for layer in range(case.layers):
        if own.stage_of[layer] == stage:
            yield from _layer_records(case, own, side, rank, layer, position)
    if has_unused:
        whole = PieceRecord(UNUSED_TENSOR, Part.VALUE, (0,), (4,), (1,), 0, (1,), (0,))
        yield BufferRecord(rank, UNUSED_TENSOR, DType.BF16, (4,), (1,), pieces=(whole,))


def _layer_records(
    case: Case, own: SideCase, side: Side, rank: int, layer: int, position: int
) -> Iterator[BufferRecord]:
    """All buffers of one layer; a sender has none for tied tensors."""
    groups: dict[object, list[int]] = {}
    for number, (tensor, holding) in enumerate(zip(case.tensors, own.holdings, strict=True)):
        if side is Side.SENDER and tensor.tied_to:
            continue
        fusable = own.fused and tensor.shape and holding.storage in ("plain", "halves")
        shard = shard_of(tensor.shape, own.mesh, position, holding)
        key = ("fused", shard.extent[1:], holding.encoding) if fusable else number
        groups.setdefault(key, []).append(number)
    first: BufferRecord | None = None
    for members in groups.values():
        parts = [
            (case.tensors[n].fqn(layer), case.tensors[n].shape, own.holdings[n]) for n in members
        ]
        shards = [shard_of(shape, own.mesh, position, holding) for _, shape, holding in parts]
        name = f"{side.value}.layers.{layer}.buffer{min(members)}"
        for record in _buffers(side, rank, name, parts, shards):
            yield record
            first = first or record
    for extra in own.extras if first else ():
        assert first is not None
        yield _extra(extra, first, side, layer)


def _extra(kind: Extra, of: BufferRecord, side: Side, layer: int) -> BufferRecord:
    """A buffer that takes no part, beside one that does."""
    bare = BufferRecord(of.rank, "", of.dtype, of.shape, of.strides)
    match kind:
        case "derived":
            role = RoleRecord("derived", recipe="widen", inputs=(of.name,))
            name, dtype = f"{of.name}_derived", DType.F32
            return replace(bare, name=name, dtype=dtype, kind=Kind.ATTRIBUTE, role=role)
        case "alias":
            return replace(bare, name=f"{of.name}_alias", role=RoleRecord("alias", of=of.name))
        case "constant":
            role = RoleRecord("constant", reason="computed when the model is built")
            name = f"{side.value}.layers.{layer}.cos_sin_cache"
            shape, strides = (8, 2), (2, 1)
            return BufferRecord(of.rank, name, DType.F32, shape, strides, Kind.BUFFER, role)


def _buffers(
    side: Side, rank: int, name: str, parts: list[tuple[str, Ints, Holding]], shards: list[Shard]
) -> Iterator[BufferRecord]:
    """One buffer for all parts, stacked along dim 0, and one for their scales."""
    first = parts[0][2]
    encoding = first.encoding
    pieces: list[HeldPart] = []
    for (tensor, shape, holding), shard in zip(parts, shards, strict=True):
        pieces += [(tensor, shape, half) for half in _halves(shard, holding, shape)]
    shape, strides = _storage(pieces, first.storage)
    records: list[PieceRecord] = []
    above = 0
    for tensor, full, shard in pieces:
        offset = above * (strides[0] if strides else 1)
        records.append(_piece(tensor, Part.VALUE, shard, offset, strides[: len(full)]))
        above += shard.extent[0] if shard.extent else 0
    memory_shape, memory_strides = _memory(shape, strides, first.storage)
    declared = EncodingRecord()
    if encoding.block is not None:
        values = "power_of_two" if encoding.scale_dtype is DType.F8E8M0FNU else "any"
        declared = EncodingRecord("scaled", encoding.block, f"{name}_scale", values)
    yield BufferRecord(
        rank,
        name,
        encoding.dtype,
        memory_shape,
        memory_strides,
        encoding=declared,
        pieces=tuple(sorted(p for p in records if 0 not in p.extent)),
        fills=_padding(side, shape, first.storage),
    )
    if encoding.block is not None:
        yield _scale_buffer(rank, name, encoding, pieces)


def _halves(shard: Shard, holding: Holding, shape: Ints) -> list[Shard]:
    """Cut a shard in two along dim 0, between blocks: pieces of one buffer share no block."""
    if holding.storage != "halves" or not shard.extent:
        return [shard]
    low = shard.extent[0] // 2
    if holding.encoding.block is not None:
        entry = holding.encoding.block[0]
        rows = max(shape[0], 1) if entry == "all" else int(entry)
        low = min(-(-(shard.start[0] + 1) // rows) * rows - shard.start[0], shard.extent[0])
    first = Shard(shard.start, (low, *shard.extent[1:]), shard.step)
    start = (shard.start[0] + low * shard.step[0], *shard.start[1:])
    return [Shard(start, (shard.extent[0] - low, *shard.extent[1:]), shard.step), first]


def _storage(pieces: list[HeldPart], storage: str) -> tuple[Ints, Ints]:
    """Logical shape of the buffer, in the tensors' dim order, and its strides in that order."""
    extent = pieces[0][2].extent
    if not extent:
        return (), ()
    shape = (sum(shard.extent[0] for _, _, shard in pieces), *extent[1:])
    if storage == "transposed":
        return shape, (1, max(shape[0], 1))
    if storage == "padded":
        return shape, contiguous_strides((*shape[:-1], shape[-1] + PADDING))
    return shape, contiguous_strides(shape)


def _memory(shape: Ints, strides: Ints, storage: str) -> tuple[Ints, Ints]:
    """The buffer's own shape and strides."""
    if storage == "transposed":
        return (shape[1], shape[0]), contiguous_strides((shape[1], shape[0]))
    if storage == "padded" and shape:
        wide = (*shape[:-1], shape[-1] + PADDING)
        return wide, contiguous_strides(wide)
    return shape, strides


def _padding(side: Side, shape: Ints, storage: str) -> tuple[FillRecord, ...]:
    if storage != "padded" or not shape or 0 in shape[:-1]:
        return ()
    sizes = (*shape[:-1], PADDING)
    strides = contiguous_strides((*shape[:-1], shape[-1] + PADDING))
    if side is Side.RECEIVER:
        return (FillRecord(shape[-1], sizes, strides, value=0),)
    return (FillRecord(shape[-1], sizes, strides, reason="padding of the rows"),)


def _piece(tensor: str, part: Part, shard: Shard, offset: int, strides: Ints) -> PieceRecord:
    zeros = (0,) * len(shard.start)
    return PieceRecord(tensor, part, shard.start, shard.extent, shard.step, offset, strides, zeros)


def _scale_buffer(rank: int, name: str, encoding: Encoding, pieces: list[HeldPart]) -> BufferRecord:
    """A flat buffer with the scales of every piece, one after another."""
    records: list[PieceRecord] = []
    above = 0
    for tensor, full, shard in pieces:
        if 0 not in shard.extent:
            cells = _blocks(encoding, full, shard)
            strides = contiguous_strides(cells.extent)
            records.append(_piece(tensor, Part.SCALE, cells, above, strides))
            above += prod(cells.extent)
    return BufferRecord(
        rank,
        f"{name}_scale",
        encoding.scale_dtype,
        (above,),
        (1,),
        encoding=EncodingRecord("scale", of=name),
        pieces=tuple(sorted(records)),
    )


def _blocks(encoding: Encoding, shape: Ints, shard: Shard) -> Shard:
    """The box of blocks that a shard touches."""
    assert encoding.block is not None
    block = [
        max(size, 1) if entry == "all" else int(entry)
        for entry, size in zip(encoding.block, shape, strict=True)
    ]
    boxes = list(zip(shard.start, shard.extent, block, strict=True))
    first = tuple(start // rows for start, _, rows in boxes)
    count = tuple((start + n - 1) // rows - start // rows + 1 for start, n, rows in boxes)
    return Shard(first, count, (1,) * len(shape))

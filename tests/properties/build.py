"""Turn a random case into records, memory, and what the receivers must hold afterwards.

Shards come from torch DTensor's own arithmetic, values and scales from plain slicing of the
dense tensor: nothing here uses the compiler, the runtime or the region algebra.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import (
    _compute_local_shape_and_global_offset,  # pyright: ignore[reportPrivateUsage] -- the oracle
)

from tests.properties.cases import Case, Encoding, Holding, SideCase
from tests.properties.dense import Dense, torch_dtype
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Axis, Part, Side
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    Ints,
    PieceRecord,
    TensorRecord,
    contiguous_strides,
)

PADDING = 3


@dataclass(frozen=True)
class Shard_:
    """One rank's part of one tensor: rows `start + step * k`."""

    start: Ints
    extent: Ints
    step: Ints


@dataclass(frozen=True)
class Built:
    """One side's declaration, and its memory by rank and buffer name."""

    declaration: Declaration
    memory: dict[int, dict[str, torch.Tensor]]


def fqn(name: str, layer: int) -> str:
    """Name one logical tensor."""
    return f"model.layers.{layer}.{name}.weight"


def shard_of(shape: Ints, mesh: Ints, coordinate: Ints, holding: Holding) -> Shard_:
    """The rank's shard by DTensor's arithmetic, or every n-th row."""
    ones = (1,) * len(shape)
    if "strided" in holding.placements:
        rows = len(range(coordinate[0], shape[0], mesh[0]))
        return Shard_(
            (coordinate[0], *(0 for _ in shape[1:])), (rows, *shape[1:]), (mesh[0], *ones[1:])
        )
    placements = [Replicate() if p is None else Shard(int(p)) for p in holding.placements]
    extent, start = _compute_local_shape_and_global_offset(
        shape, mesh, list(coordinate), placements
    )
    return Shard_(tuple(start), tuple(extent), ones)


def coordinate_of(mesh: Ints, number: int) -> Ints:
    """Row-major coordinate of a position in the mesh."""
    result: list[int] = []
    for size in reversed(mesh):
        result.append(number % size)
        number //= size
    return tuple(reversed(result))


def axes_of(side: SideCase) -> tuple[Axis, ...]:
    """The pipeline axis outermost, then the mesh axes in order."""
    inner = prod(side.mesh)
    found = [Axis(name="pp", size=side.stages, stride=inner)]
    for number, size in enumerate(side.mesh):
        inner //= size
        found.append(Axis(name=f"axis{number}", size=size, stride=inner))
    return tuple(found)


def build(case: Case, side: Side, dense: Dense) -> Built:
    """Declare one side, with its memory as the dense tensors say: sent, or to be received."""
    own = case.sender if side is Side.SENDER else case.receiver
    records: list[BufferRecord] = []
    memory: dict[int, dict[str, torch.Tensor]] = {}
    for rank in range(own.world_size):
        stage, number = divmod(rank, prod(own.mesh))
        memory[rank] = {}
        for layer in range(case.layers):
            if own.stage_of[layer] == stage:
                for record in _layer_records(
                    case, own, side, rank, layer, coordinate_of(own.mesh, number)
                ):
                    records.append(record)
                    memory[rank][record.name] = _fill(record, dense, side)
    tensors = sorted(
        TensorRecord(fqn(t.name, layer), t.shape)
        for t in case.tensors
        for layer in range(case.layers)
    )
    ranks = tuple(range(own.world_size))
    declared = Declaration(
        side, own.world_size, ranks, axes_of(own), tuple(tensors), tuple(sorted(records))
    )
    return Built(declared, memory)


def _layer_records(
    case: Case, own: SideCase, side: Side, rank: int, layer: int, coordinate: Ints
) -> Iterator[BufferRecord]:
    groups: dict[object, list[int]] = {}
    for number, (tensor, holding) in enumerate(zip(case.tensors, own.holdings, strict=True)):
        fusable = own.fused and tensor.shape and holding.storage in ("plain", "halves")
        shard = shard_of(tensor.shape, own.mesh, coordinate, holding)
        key = ("fused", shard.extent[1:], holding.encoding) if fusable else number
        groups.setdefault(key, []).append(number)
    for members in groups.values():
        parts = [
            (fqn(case.tensors[n].name, layer), case.tensors[n].shape, own.holdings[n])
            for n in members
        ]
        shards = [shard_of(shape, own.mesh, coordinate, holding) for _, shape, holding in parts]
        name = f"{side.value}.layers.{layer}.buffer{min(members)}"
        yield from _buffers(side, rank, name, parts, shards)


def _buffers(
    side: Side,
    rank: int,
    name: str,
    parts: list[tuple[str, Ints, Holding]],
    shards: list[Shard_],
) -> Iterator[BufferRecord]:
    """One buffer for all parts, stacked along dim 0, and one for their scales."""
    first = parts[0][2]
    encoding = first.encoding
    pieces: list[tuple[str, Ints, Shard_]] = []
    for (tensor, shape, holding), shard in zip(parts, shards, strict=True):
        pieces += [(tensor, shape, half) for half in _halves(shard, holding, shape)]
    shape, strides = _storage(pieces, first.storage)
    records: list[PieceRecord] = []
    above = 0
    for tensor, full, shard in pieces:
        offset = above * (strides[0] if strides else 1)
        records.append(_piece(tensor, Part.VALUE, shard, offset, strides[: len(full)]))
        above += shard.extent[0] if shard.extent else 0
    fills = _padding(side, shape, first.storage)
    memory_shape, memory_strides = _memory(shape, strides, first.storage)
    declared = EncodingRecord()
    if encoding.block is not None:
        values = "power_of_two" if encoding.scale_dtype is DType.F8E8M0FNU else "any"
        declared = EncodingRecord("scaled", encoding.block, f"{name}_scale", values)
        yield _scale_buffer(rank, name, encoding, pieces)
    kept = tuple(sorted(p for p in records if 0 not in p.extent))
    yield BufferRecord(
        rank,
        name,
        encoding.dtype,
        memory_shape,
        memory_strides,
        encoding=declared,
        pieces=kept,
        fills=fills,
    )


def _halves(shard: Shard_, holding: Holding, shape: Ints) -> list[Shard_]:
    """Cut a shard in two along dim 0, between blocks: pieces of one buffer share no block."""
    if holding.storage != "halves" or not shard.extent:
        return [shard]
    low = shard.extent[0] // 2
    if holding.encoding.block is not None:
        entry = holding.encoding.block[0]
        rows = max(shape[0], 1) if entry == "all" else int(entry)
        low = min(-(-(shard.start[0] + 1) // rows) * rows - shard.start[0], shard.extent[0])
    first = Shard_(shard.start, (low, *shard.extent[1:]), shard.step)
    start = (shard.start[0] + low * shard.step[0], *shard.start[1:])
    return [Shard_(start, (shard.extent[0] - low, *shard.extent[1:]), shard.step), first]


def _storage(pieces: list[tuple[str, Ints, Shard_]], storage: str) -> tuple[Ints, Ints]:
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


def _piece(tensor: str, part: Part, shard: Shard_, offset: int, strides: Ints) -> PieceRecord:
    zeros = (0,) * len(shard.start)
    return PieceRecord(tensor, part, shard.start, shard.extent, shard.step, offset, strides, zeros)


def _scale_buffer(
    rank: int, name: str, encoding: Encoding, pieces: list[tuple[str, Ints, Shard_]]
) -> BufferRecord:
    """A flat buffer with the scales of every piece, one after another."""
    assert encoding.block is not None
    records: list[PieceRecord] = []
    above = 0
    for tensor, full, shard in pieces:
        if 0 in shard.extent:
            continue
        block = [
            max(s, 1) if b == "all" else int(b) for b, s in zip(encoding.block, full, strict=True)
        ]
        first = tuple(s // b for s, b in zip(shard.start, block, strict=True))
        last = tuple(
            (s + e - 1) // b for s, e, b in zip(shard.start, shard.extent, block, strict=True)
        )
        count = tuple(b - a + 1 for a, b in zip(first, last, strict=True))
        cells = Shard_(first, count, (1,) * len(full))
        records.append(_piece(tensor, Part.SCALE, cells, above, contiguous_strides(count)))
        above += prod(count)
    return BufferRecord(
        rank,
        f"{name}_scale",
        encoding.scale_dtype,
        (above,),
        (1,),
        encoding=EncodingRecord("scale", of=name),
        pieces=tuple(sorted(records)),
    )


def _fill(record: BufferRecord, dense: Dense, side: Side) -> torch.Tensor:
    """Memory of a buffer with every piece sliced out of the dense tensors."""
    size = 1 + sum((n - 1) * s for n, s in zip(record.shape, record.strides, strict=True))
    storage = torch.full((max(size, 0) * 8 + 8,), 0xA5, dtype=torch.uint8)
    dtype = torch_dtype(record.dtype)
    flat = storage[: storage.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
    buffer = torch.as_strided(flat, record.shape, record.strides)
    for piece in record.pieces:
        view = torch.as_strided(flat, piece.extent, piece.strides, piece.offset)
        index = tuple(
            slice(a, a + (n - 1) * k + 1, k)
            for a, n, k in zip(piece.start, piece.extent, piece.step, strict=True)
        )
        source = (
            dense.scales(piece.tensor, side)
            if piece.part is Part.SCALE
            else dense.values(piece.tensor, side)
        )
        view.copy_(source[index])
    for fill in record.fills:
        if fill.value >= 0:
            torch.as_strided(flat, fill.sizes, fill.strides, fill.offset).fill_(fill.value)
    return buffer

"""Plans written by hand: shards with a place in memory each, and the edges between two sides.

Every rank holds one box of one logical tensor, in buffer `w`, and its scales in `w_scale`. What
differs by rank stands in tables, so that one half describes any cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tranship.runtime.dtypes import torch_dtype
from tranship.schema.dtypes import DType
from tranship.schema.flows import traffic
from tranship.schema.manifest import Side
from tranship.schema.plan import (
    Edge,
    Half,
    PlanSide,
    Round,
    ScaleHalf,
    Slot,
    Span,
    Staging,
    TransferPlan,
)

Ints = tuple[int, ...]
Block = tuple[int | Literal["all"], ...]
Buffers = dict[int, dict[str, Tensor]]

DIGEST = "sha256:" + "0" * 64
SENTINEL = 0xA5
LEAD = 3
"""Elements of storage before the first one of every bound tensor."""


@dataclass(frozen=True)
class Box:
    """Elements `start + step * k` of a logical tensor, `0 <= k < extent`."""

    start: Ints
    extent: Ints
    step: Ints

    def of(self, dense: Tensor) -> Tensor:
        """Cut the box out of the whole tensor."""
        ends = zip(self.start, self.extent, self.step, strict=True)
        return dense[tuple(slice(a, a + n * step, step) for a, n, step in ends)]


@dataclass(frozen=True)
class Region:
    """Where a box lies in a buffer of `size` elements."""

    offset: int
    strides: Ints
    size: int


@dataclass(frozen=True)
class Scaling:
    """A grid of blocks in elements with a scale each."""

    block: Block
    origin: Ints
    dtype: DType


@dataclass(frozen=True)
class Shard:
    """What one rank holds."""

    box: Box
    values: Region
    scales: Region | None = None


@dataclass(frozen=True)
class Holding:
    """What the ranks of one side hold of a tensor of `shape`."""

    shape: Ints
    dtype: DType
    shards: tuple[Shard, ...]
    scaling: Scaling | None = None


def box(start: Ints, extent: Ints, step: Ints | None = None) -> Box:
    return Box(start, extent, step or (1,) * len(start))


def contiguous(extent: Ints) -> Region:
    """Lay a box out row-major, without gaps."""
    strides = np.cumprod((1, *[max(size, 1) for size in extent[:0:-1]]))[::-1]
    return Region(0, tuple(strides.tolist())[: len(extent)], int(np.prod(extent)))


def sizes_of(block: Block, shape: Ints) -> Ints:
    pairs = zip(block, shape, strict=True)
    return tuple(max(size, 1) if entry == "all" else entry for entry, size in pairs)


def blocks_of(shard: Box, scaling: Scaling, shape: Ints) -> Box:
    """Return the blocks that a box touches."""
    size = sizes_of(scaling.block, shape)
    first = [(a - o) // b for a, o, b in zip(shard.start, scaling.origin, size, strict=True)]
    ends = zip(shard.start, shard.extent, scaling.origin, size, strict=True)
    last = [
        (a + n - 1 - o) // b if n else z - 1 for z, (a, n, o, b) in zip(first, ends, strict=True)
    ]
    counts = [z - a + 1 for a, z in zip(first, last, strict=True)]
    return box(tuple(first), tuple(counts))


def plainly(shape: Ints, dtype: DType, boxes: Sequence[Box]) -> Holding:
    """Hold boxes in contiguous buffers, one per rank."""
    return Holding(shape, dtype, tuple(Shard(item, contiguous(item.extent)) for item in boxes))


def in_blocks(shape: Ints, dtype: DType, boxes: Sequence[Box], scaling: Scaling) -> Holding:
    """Hold boxes of codes and their scales in contiguous buffers, one pair per rank."""
    shards = [
        Shard(item, contiguous(item.extent), contiguous(blocks_of(item, scaling, shape).extent))
        for item in boxes
    ]
    return Holding(shape, dtype, tuple(shards), scaling)


def half(holding: Holding) -> Half:
    """Describe a holding as one end of an edge."""
    dims = range(len(holding.shape))
    scaling = holding.scaling
    scale = scaling and ScaleHalf(
        buffer="w_scale",
        dtype=scaling.dtype,
        start=_lookups("scale_start", dims),
        extent=_lookups("scale_extent", dims),
        offset="scale_offset[rank]",
        strides=_lookups("scale_stride", dims),
    )
    return Half(
        buffer="w",
        dtype=holding.dtype,
        start=_lookups("start", dims),
        extent=_lookups("extent", dims),
        step=holding.shards[0].box.step,
        origin=scaling.origin if scaling else None,
        offset="offset[rank]",
        strides=_lookups("stride", dims),
        block=scaling.block if scaling else None,
        scale=scale,
    )


def _lookups(name: str, dims: range) -> tuple[str, ...]:
    return tuple(f"{name}_{dim}[rank]" for dim in dims)


def plan_side(holding: Holding) -> PlanSide:
    """Tabulate the shards of a holding."""
    tables: dict[str, tuple[int, ...]] = {}

    def tabulate(name: str, rows: Sequence[Ints]) -> None:
        for dim, column in enumerate(zip(*rows, strict=True)):
            tables[f"{name}_{dim}"] = column

    shards = holding.shards
    tabulate("start", [shard.box.start for shard in shards])
    tabulate("extent", [shard.box.extent for shard in shards])
    tabulate("stride", [shard.values.strides for shard in shards])
    tables["offset"] = tuple(shard.values.offset for shard in shards)
    if holding.scaling:
        blocks = [blocks_of(shard.box, holding.scaling, holding.shape) for shard in shards]
        regions = [shard.scales for shard in shards if shard.scales]
        tabulate("scale_start", [item.start for item in blocks])
        tabulate("scale_extent", [item.extent for item in blocks])
        tabulate("scale_stride", [item.strides for item in regions])
        tables["scale_offset"] = tuple(item.offset for item in regions)
    return PlanSide(manifest=DIGEST, world_size=len(shards), tables=tables)


def edge(sender: Holding, receiver: Holding, **how: Any) -> Edge:
    """Connect two holdings; `how` gives the op and, if they are not the defaults, the rest."""
    return Edge(tensor="w", shape=sender.shape, sender=half(sender), receiver=half(receiver), **how)


def plan(
    sender: Holding, receiver: Holding, edges: Sequence[Edge], rounds: int = 1
) -> TransferPlan:
    """Make a plan whose slots, one per round, are just large enough."""
    return whole_plan(edges, sender=plan_side(sender), receiver=plan_side(receiver), rounds=rounds)


def whole_plan(edges: Sequence[Edge], *, rounds: int = 1, **rest: Any) -> TransferPlan:
    """Make a plan whose slots, one per round, are just large enough."""
    draft = TransferPlan(
        format="tranship.plan/1",
        options=DIGEST,
        staging=Staging(budget=0, slots=()),
        rounds=tuple(Round(slot=number) for number in range(rounds)),
        edges=tuple(edges),
        **rest,
    )
    found = traffic(draft, edges)
    tables = (found.sender, found.receiver)
    regions = [_in_a_row(table.max(axis=1, initial=0).tolist()) for table in tables]
    slots = [Slot(sender=own, receiver=other) for own, other in zip(*regions, strict=True)]
    budget = max(sum(region.size for region in side) for side in regions)
    return draft.model_copy(update={"staging": Staging(budget=budget, slots=tuple(slots))})


def _in_a_row(sizes: list[int]) -> list[Span]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [Span(offset=start, size=size) for start, size in zip(starts, sizes, strict=True)]


# --- memory -------------------------------------------------------------------------------------


def blank(size: int, dtype: DType) -> Tensor:
    """Allocate `size` elements of sentinel bytes that do not start where their storage does."""
    kind = torch_dtype(dtype)
    storage = torch.full(((size + LEAD) * kind.itemsize,), SENTINEL, dtype=torch.uint8)
    return storage.view(kind)[LEAD:]


def filled(holding: Holding, dense: Tensor, scales: Tensor | None = None) -> Buffers:
    """Allocate what every rank holds, with its part of a whole tensor and of its scales.

    `scales` starts with the scale of block 0.
    """
    buffers: Buffers = {}
    for rank, shard in enumerate(holding.shards):
        buffers[rank] = {"w": _placed(shard.box, shard.values, holding.dtype, dense)}
        if holding.scaling and scales is not None and shard.scales:
            blocks = blocks_of(shard.box, holding.scaling, holding.shape)
            buffers[rank]["w_scale"] = _placed(blocks, shard.scales, holding.scaling.dtype, scales)
    return buffers


def _placed(shard: Box, region: Region, dtype: DType, dense: Tensor) -> Tensor:
    buffer = blank(region.size, dtype)
    if min(shard.extent, default=1) > 0:
        start = buffer.storage_offset() + region.offset
        buffer.as_strided(shard.extent, region.strides, start).copy_(shard.of(dense))
    return buffer


def emptied(buffers: Mapping[int, Mapping[str, Tensor]]) -> Buffers:
    """Allocate the same buffers, with sentinel bytes in them."""
    return {
        rank: {name: _sentinels(tensor) for name, tensor in own.items()}
        for rank, own in buffers.items()
    }


def _sentinels(tensor: Tensor) -> Tensor:
    fresh = torch.full(((LEAD + len(tensor)) * tensor.itemsize,), SENTINEL, dtype=torch.uint8)
    return fresh.view(tensor.dtype)[LEAD:]


def storage_bytes(tensor: Tensor) -> Tensor:
    """Return all bytes of a tensor's storage, those before its first element too."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def assert_same_memory(found: Buffers, expected: Buffers) -> None:
    """Compare every byte of every buffer, gaps included; a scale that is NaN may be any NaN."""
    for rank, own in expected.items():
        for name, tensor in own.items():
            pair = [storage_bytes(one).view(tensor.dtype) for one in (found[rank][name], tensor)]
            if name == "w_scale":
                pair = [torch.where(one.isnan(), torch.nan, one) for one in pair]
            same = pair[0].view(torch.uint8).equal(pair[1].view(torch.uint8))
            assert same, f"rank {rank}, buffer {name}"


def bound(program_buffers: Sequence[Any], own: Mapping[str, Tensor]) -> list[Tensor]:
    """Order a rank's tensors as a program wants them."""
    return [own[use.name] for use in program_buffers]


def declared(plan_: TransferPlan, side: Side) -> PlanSide:
    return plan_.sender if side is Side.SENDER else plan_.receiver

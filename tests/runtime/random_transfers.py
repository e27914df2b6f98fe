"""Random transfers of one tensor, and what must come of them, computed on the whole tensor."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.runtime.small_plans import (
    Block,
    Box,
    Buffers,
    Holding,
    Ints,
    Region,
    Scaling,
    Shard,
    blocks_of,
    edge,
    emptied,
    filled,
    plan,
    sizes_of,
)
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.quantization import dequantize, quantize
from tranship.schema.dtypes import DType
from tranship.schema.plan import Op, Place, TransferPlan

FLOATS = (DType.F32, DType.BF16, DType.F16)
FORMULAS = ("divide", "reciprocal", "rescale", "power_of_two")


@dataclass(frozen=True)
class Transfer:
    """A plan with the senders' memory, and the receivers' before and after."""

    plan: TransferPlan
    sender: Buffers
    receiver: Buffers
    expected: Buffers


@dataclass(frozen=True)
class Cut:
    """How one dim is split: part `i` holds `starts[i] + step * k`, `0 <= k < extents[i]`."""

    starts: Ints
    extents: Ints
    step: int


# --- shards -------------------------------------------------------------------------------------


@st.composite
def cuts(
    draw: st.DrawFn, size: int, parts: int, grid: tuple[int, int] | None, *, steps: bool
) -> Cut:
    """Split a dim into parts, some perhaps empty.

    With `grid` (origin, block) only between blocks; with `steps` perhaps interleaved.
    """
    if steps and draw(st.booleans()):
        return Cut(
            tuple(range(parts)),
            tuple(len(range(part, size, parts)) for part in range(parts)),
            parts,
        )
    places = list(range(size + 1))
    if grid:
        origin, block = grid
        places = [0, *(at for at in range(1, size) if (at - origin) % block == 0), size]
    inner = sorted(draw(st.lists(st.sampled_from(places), min_size=parts - 1, max_size=parts - 1)))
    edges = [0, *inner, size]
    return Cut(tuple(edges[:-1]), tuple(np.diff(edges).tolist()), 1)


@st.composite
def regions(draw: st.DrawFn, extent: Ints) -> Region:
    """Lay a box out in any order of dims, with gaps."""
    strides = [0] * len(extent)
    stride = draw(st.integers(1, 2))
    for dim in draw(st.permutations(range(len(extent)))):
        strides[dim] = stride
        stride = stride * max(extent[dim], 1) + draw(st.integers(0, 2))
    offset = draw(st.integers(0, 3))
    return Region(offset, tuple(strides), offset + stride)


@st.composite
def holdings(
    draw: st.DrawFn,
    shape: Ints,
    dtype: DType,
    scaling: Scaling | None = None,
    whole_blocks: Scaling | None = None,
    *,
    steps: bool = False,
) -> Holding:
    """Give every part of a cut to a rank, or to two."""
    grids: list[tuple[int, int] | None] = [None] * len(shape)
    if whole_blocks:
        sizes = sizes_of(whole_blocks.block, shape)
        grids = list(zip(whole_blocks.origin, sizes, strict=True))
    parts = draw(st.sampled_from([(1, 1, 1), (1, 1, 4), (2, 3, 1), (3, 1, 2), (2, 2, 2)]))
    dims = [
        draw(cuts(n, count, grid, steps=steps))
        for n, count, grid in zip(shape, parts, grids, strict=False)
    ]
    step = tuple(cut.step for cut in dims)
    boxes = [
        Box(
            tuple(cut.starts[i] for cut, i in zip(dims, place, strict=True)),
            tuple(cut.extents[i] for cut, i in zip(dims, place, strict=True)),
            step,
        )
        for place in product(*(range(len(cut.starts)) for cut in dims))
    ] * draw(st.integers(1, 2))
    shards = [
        Shard(
            item,
            draw(regions(item.extent)),
            draw(regions(blocks_of(item, scaling, shape).extent)) if scaling else None,
        )
        for item in boxes
    ]
    return Holding(shape, dtype, tuple(shards), scaling)


@st.composite
def scalings(draw: st.DrawFn, shape: Ints, dtype: DType) -> Scaling:
    """Choose a grid that may start before the tensor does."""
    block: Block = tuple(draw(st.sampled_from([1, 2, 3, 5, 8, "all"])) for _ in shape)
    origin = tuple(0 if size in (1, "all") else -draw(st.integers(0, 2)) for size in block)
    return Scaling(block, origin, dtype)


def shapes() -> st.SearchStrategy[Ints]:
    return st.lists(st.integers(1, 13), min_size=0, max_size=3).map(tuple)


# --- values -------------------------------------------------------------------------------------


def values(shape: Ints, dtype: DType, seed: int) -> Tensor:
    """Draw values of magnitudes from 2 ** -12 to 2 ** 6."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(-12, 6, shape, generator=generator).float().exp2()
    return (torch.randn(shape, generator=generator) * magnitude).to(torch_dtype(dtype))


def with_holes(dense: Tensor, seed: int) -> Tensor:
    """Put a value that is not finite into every third tensor, which poisons a block."""
    if seed % 3 == 0 and dense.numel():
        dense.reshape(-1)[seed % dense.numel()] = (torch.nan, torch.inf)[seed % 2]
    return dense


def scaled_values(shape: Ints, scaling: Scaling, seed: int) -> tuple[Tensor, Tensor]:
    """Draw codes, and a scale for every block from block 0 on."""
    blocks = blocks_of(Box((0,) * len(shape), shape, (1,) * len(shape)), scaling, shape)
    counts = tuple(a + n for a, n in zip(blocks.start, blocks.extent, strict=True))
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-9, 9, counts, generator=generator).float()
    scales = exponents.exp2().to(torch_dtype(scaling.dtype))
    return values(shape, DType.F32, seed).to(torch.float8_e4m3fn), scales


def on_grid(dense: Tensor, scaling: Scaling, formula: str) -> tuple[Tensor, Tensor]:
    """Quantize a whole tensor; the scales start with block 0."""
    block, origin, skip = _grid(scaling, tuple(dense.shape))
    codes, touched = quantize(
        dense,
        block,
        formula=formula,
        code_dtype=torch.float8_e4m3fn,
        scale_dtype=torch_dtype(scaling.dtype),
        origin=origin,
    )
    counts = [first + count for first, count in zip(skip, touched.shape, strict=True)]
    scales = torch.zeros(counts, dtype=touched.dtype)
    scales[tuple(slice(first, None) for first in skip)] = touched
    return codes, scales


def off_grid(codes: Tensor, scales: Tensor, scaling: Scaling, dtype: DType) -> Tensor:
    """Dequantize a whole tensor; the scales start with block 0."""
    block, origin, skip = _grid(scaling, tuple(codes.shape))
    touched = scales[tuple(slice(first, None) for first in skip)]
    return dequantize(codes, touched, block, dtype=torch_dtype(dtype), origin=origin)


def _grid(scaling: Scaling, shape: Ints) -> tuple[Ints, Ints, Ints]:
    """Return block sizes, where the tensor starts on the grid, and blocks wholly before it."""
    block = sizes_of(scaling.block, shape)
    origin = tuple(-start for start in scaling.origin)
    return block, origin, tuple(a // size for a, size in zip(origin, block, strict=True))


# --- transfers ----------------------------------------------------------------------------------


def finish(
    sender: Holding,
    receiver: Holding,
    edges: list[Any],
    held: tuple[Tensor, Tensor | None],
    wanted: tuple[Tensor, Tensor | None],
) -> Transfer:
    after = filled(receiver, *wanted)
    return Transfer(plan(sender, receiver, edges), filled(sender, *held), emptied(after), after)


@st.composite
def copies(draw: st.DrawFn) -> Transfer:
    shape, dtype = draw(shapes()), draw(st.sampled_from(DType))
    sender = draw(holdings(shape, dtype, steps=True))
    receiver = draw(holdings(shape, dtype, steps=True))
    size = torch_dtype(dtype).itemsize
    bytes_ = torch.randint(0, 2 if dtype is DType.BOOL else 256, (*shape, size), dtype=torch.uint8)
    dense = bytes_.view(torch_dtype(dtype)).reshape(shape)
    return finish(
        sender, receiver, [edge(sender, receiver, op=Op.COPY)], (dense, None), (dense, None)
    )


@st.composite
def casts(draw: st.DrawFn) -> Transfer:
    shape = draw(shapes())
    source, target = draw(st.permutations([*FLOATS, DType.F64]))[:2]
    sender = draw(holdings(shape, source, steps=True))
    receiver = draw(holdings(shape, target, steps=True))
    dense = values(shape, source, draw(st.integers(0, 99)))
    how = {"op": Op.CAST, "place": draw(st.sampled_from(Place))}
    wanted = dense.to(torch_dtype(target))
    return finish(sender, receiver, [edge(sender, receiver, **how)], (dense, None), (wanted, None))


@st.composite
def passthroughs(draw: st.DrawFn) -> Transfer:
    shape = draw(shapes())
    dtype = draw(st.sampled_from([DType.F32, DType.F8E8M0FNU]))
    target = draw(scalings(shape, dtype))
    # The sender may count its blocks from one that lies further to the front.
    sizes = sizes_of(target.block, shape)
    shift = tuple(draw(st.integers(0, 1)) for _ in shape)
    origin = tuple(a - n * b for a, n, b in zip(target.origin, shift, sizes, strict=True))
    source = Scaling(target.block, origin, dtype)
    sender = draw(holdings(shape, DType.F8E4M3FN, source))
    receiver = draw(holdings(shape, DType.F8E4M3FN, target))
    codes, scales = scaled_values(shape, source, draw(st.integers(0, 99)))
    wanted = scales[tuple(slice(n, None) for n in shift)]
    return finish(
        sender, receiver, [edge(sender, receiver, op=Op.COPY)], (codes, scales), (codes, wanted)
    )


@st.composite
def dequantizations(draw: st.DrawFn) -> Transfer:
    shape, target = draw(shapes()), draw(st.sampled_from(FLOATS))
    scaling = draw(scalings(shape, draw(st.sampled_from([DType.F32, DType.BF16]))))
    sender = draw(holdings(shape, DType.F8E4M3FN, scaling))
    receiver = draw(holdings(shape, target, steps=all(size == 1 for size in scaling.block)))
    codes, scales = scaled_values(shape, scaling, draw(st.integers(0, 99)))
    wanted = off_grid(codes, scales, scaling, target)
    edges = [edge(sender, receiver, op=Op.DEQUANTIZE)]
    return finish(sender, receiver, edges, (codes, scales), (wanted, None))


@st.composite
def quantizations(draw: st.DrawFn, op: Op, place: Place, *, amax: bool = False) -> Transfer:
    """Quantize at one side, which holds whole blocks unless amax edges bring their bounds."""
    shape, formula = draw(shapes()), draw(st.sampled_from(FORMULAS))
    kinds = [DType.F32, DType.BF16] + [DType.F8E8M0FNU] * (formula == "power_of_two")
    target = draw(scalings(shape, draw(st.sampled_from(kinds))))
    source = draw(scalings(shape, DType.F32)) if op is Op.REQUANTIZE else None
    at_sender = place is Place.SENDER
    dtype = DType.F8E4M3FN if source else draw(st.sampled_from(FLOATS))
    sender = draw(holdings(shape, dtype, source, target if at_sender else None))
    aligned = None if at_sender or amax else target
    receiver = draw(holdings(shape, DType.F8E4M3FN, target, aligned))
    seed = draw(st.integers(0, 99))
    if source:
        held = scaled_values(shape, source, seed)
        dense = off_grid(*held, source, DType.F32)
    else:
        dense = with_holes(values(shape, dtype, seed), seed)
        held = dense, None
    edges = [edge(sender, receiver, op=op, place=place, formula=formula)]
    if amax:
        edges.append(edge(sender, receiver, op=Op.AMAX))
    return finish(sender, receiver, edges, held, on_grid(dense, target, formula))


TRANSFERS = {
    "copy": copies(),
    "cast": casts(),
    "passthrough": passthroughs(),
    "dequantize": dequantizations(),
    "quantize at sender": quantizations(Op.QUANTIZE, Place.SENDER),
    "quantize at receiver": quantizations(Op.QUANTIZE, Place.RECEIVER),
    "quantize by amax": quantizations(Op.QUANTIZE, Place.RECEIVER, amax=True),
    "requantize at sender": quantizations(Op.REQUANTIZE, Place.SENDER),
    "requantize at receiver": quantizations(Op.REQUANTIZE, Place.RECEIVER),
    "requantize by amax": quantizations(Op.REQUANTIZE, Place.RECEIVER, amax=True),
}

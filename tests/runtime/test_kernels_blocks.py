"""Whole blocks of bfloat16, which have a kernel of their own, against torch and the sources.

Triton's interpreter rounds wrongly on its way to FP8 and bfloat16. Without a GPU the values are
therefore multiples of codes, which no formula rounds; on CUDA they are any, and every byte counts.
"""

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.runtime.kernel_steps import (
    CUDA,
    DEVICE,
    assert_step,
    blanked,
    by_kernels,
    cells,
    code_multiples,
    different,
    placed,
    quantized,
    ranks,
    upstream,
    upstream_cells,
)
from tests.runtime.small_plans import (
    Box,
    Buffers,
    Holding,
    Ints,
    Scaling,
    box,
    edge,
    filled,
    in_blocks,
    plainly,
    plan,
)
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.kernels import rounds
from tranship.runtime.kernels.launch import Launch, Shared, bind_tables
from tranship.runtime.kernels.tables import Table
from tranship.schema.dtypes import DType
from tranship.schema.formulas import FORMULAS
from tranship.schema.manifest import Side
from tranship.schema.plan import Op, Place

Encoding = tuple[str, DType, DType]
"""Formula, dtype of codes, dtype of scales."""

SHAPE = (256, 384)
ALL: list[Encoding] = [
    *product(FORMULAS, (DType.F8E4M3FN, DType.F8E5M2), (DType.F32, DType.BF16)),
    ("power_of_two", DType.F8E4M3FN, DType.F8E8M0FNU),
    ("power_of_two", DType.F8E5M2, DType.F8E8M0FNU),
]
FEW: list[Encoding] = [
    ("divide", DType.F8E4M3FN, DType.F32),
    ("reciprocal", DType.F8E4M3FN, DType.BF16),
    ("rescale", DType.F8E5M2, DType.F32),
    ("power_of_two", DType.F8E4M3FN, DType.F8E8M0FNU),
]
CASES: list[tuple[Ints, Encoding]] = [
    *(((128, 128), encoding) for encoding in (ALL if CUDA else FEW)),
    *((block, encoding) for block in ((64, 64), (128, 64)) for encoding in FEW[: 4 if CUDA else 1]),
]

each_case = pytest.mark.parametrize(
    ("block", "encoding"), CASES, ids=lambda part: "-".join(str(entry) for entry in part)
)
each_place = pytest.mark.parametrize("place", [Place.SENDER, Place.RECEIVER])


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[Table]:
    """All tables that are bound from now on."""
    found: list[Table] = []

    def spy(tables: Sequence[Table], shared: Shared) -> list[Launch]:
        found.extend(table for table in tables if len(table.records))
        return bind_tables(tables, shared)

    monkeypatch.setattr(rounds, "bind_tables", spy)
    return found


def of_blocks(tables: list[Table]) -> list[Table]:
    """Return the tables of kernels that quantize."""
    return [table for table in tables if table.kernel.startswith(("quantize", "raise"))]


def row_boxes(shape: Ints, rows: int) -> list[Box]:
    """Cut a matrix into shards of at most so many rows."""
    starts = range(0, shape[0], rows)
    return [box((at, 0), (min(rows, shape[0] - at), shape[1])) for at in starts]


def data(block: Ints, code_dtype: torch.dtype) -> dict[str, Tensor]:
    """Return matrices without special values, bfloat16."""
    found = {"multiples of codes": code_multiples(SHAPE, block, code_dtype)}
    if CUDA:
        generator = torch.Generator().manual_seed(2)
        normal = torch.randn(SHAPE, generator=generator)
        found["normal"] = normal * 0.02
        found["heavy-tailed"] = normal * (torch.randn(SHAPE, generator=generator) * 4).exp2()
        found["tiny"] = normal * 1e-38
        found["subnormal"] = normal.sign() * 2.0**-133
    return {name: values.bfloat16() for name, values in found.items()}


def blocks_plan(
    dense: Tensor, block: Ints, encoding: Encoding, place: Place
) -> tuple[Holding, Holding, Buffers]:
    """Return what senders and a receiver hold, and the receiver's memory afterwards."""
    formula, codes, scales = encoding
    scaling, shape = Scaling(block, (0, 0), scales), tuple(dense.shape)
    senders = row_boxes(shape, 96 if place is Place.RECEIVER else shape[0])
    sender = plainly(shape, DType.BF16, senders)
    receiver = in_blocks(shape, codes, [box((0, 0), shape)], scaling)
    wanted = quantized(dense, scaling, formula, torch_dtype(codes))
    return sender, receiver, filled(receiver, *wanted)


def quantize_by_step(dense: Tensor, block: Ints, encoding: Encoding, place: Place) -> Buffers:
    """Run a step that must give the bytes of `quantization.py`, and return what it gave."""
    sender, receiver, expected = blocks_plan(dense, block, encoding, place)
    how = edge(sender, receiver, op=Op.QUANTIZE, place=place, formula=encoding[0])
    return assert_step(plan(sender, receiver, [how]), filled(sender, dense), expected)


def assert_upstream(found: Buffers, dense: Tensor, block: Ints, encoding: Encoding) -> None:
    """Compare with the sources, run on the same device."""
    formula, codes, scales = encoding
    wanted = upstream_cells(dense.to(DEVICE), block, (0, 0), formula, torch_dtype(codes))
    assert torch.equal(found[0]["w"].view(torch.uint8), wanted[0].view(torch.uint8).reshape(-1))
    kept = wanted[1].to(torch_dtype(scales)).view(torch.uint8)
    assert torch.equal(found[0]["w_scale"].view(torch.uint8), kept)


@each_place
@each_case
def test_whole_blocks_are_quantized_by_the_fast_kernel_alone(
    block: Ints, encoding: Encoding, place: Place, tables: list[Table]
) -> None:
    for dense in data(block, torch_dtype(encoding[1])).values():
        tables.clear()
        found = quantize_by_step(dense, block, encoding, place)
        assert {table.kernel for table in of_blocks(tables)} == {"quantize_blocks"}
        cut = {table.options["FRAGMENTED"] for table in of_blocks(tables)}
        assert (True in cut) == (place is Place.RECEIVER)
        assert all(table.options["DIGEST"] for table in of_blocks(tables)) == (
            place is Place.SENDER
        )
        if CUDA:
            assert_upstream(found, dense, block, encoding)


@each_place
@pytest.mark.parametrize("encoding", FEW, ids="-".join)
def test_a_value_that_is_not_finite_poisons_its_block_alone(
    encoding: Encoding, place: Place, tables: list[Table]
) -> None:
    block = (128, 128)
    broken = {0: torch.nan, 2: torch.inf, 3: -torch.inf}
    for dense in data(block, torch_dtype(encoding[1])).values():
        for number, cell in enumerate(cells(SHAPE, block)):
            if number in broken:
                dense[cell][100, 77] = broken[number]
        sender, receiver, expected = blocks_plan(dense, block, encoding, place)
        how = edge(sender, receiver, op=Op.QUANTIZE, place=place, formula=encoding[0])
        wanted = placed(expected)
        found = blanked(wanted)
        by_kernels(plan(sender, receiver, [how]), placed(filled(sender, dense)), found)
        scales = found[0]["w_scale"].float()
        assert scales.isfinite().tolist() == [number not in broken for number in range(6)]
        codes, others = (own[0]["w"].view(torch.uint8).view(SHAPE) for own in (found, wanted))
        for number, cell in enumerate(cells(SHAPE, block)):
            if number in broken and not CUDA:
                # The interpreter has a code of its own for NaN.
                others[cell] = codes[cell][0, 0]
            assert torch.equal(codes[cell], others[cell])
            assert bool((others[cell] == others[cell][0, 0]).all()) == (number in broken)
        assert different(found, wanted) == []
    assert {table.kernel for table in of_blocks(tables)} == {"quantize_blocks"}


@each_place
@pytest.mark.parametrize("formula", FORMULAS)
def test_zeros_keep_their_signs(formula: str, place: Place, tables: list[Table]) -> None:
    block = (128, 128)
    dense = code_multiples(SHAPE, block).bfloat16()
    dense[:128, :128] = 0.0
    dense[:128, 128:256] = -0.0
    dense[128:, ::2] *= torch.tensor(-0.0)
    found = quantize_by_step(dense, block, (formula, DType.F8E4M3FN, DType.F32), place)[0]
    zeros = (dense == 0).reshape(-1).to(DEVICE)
    signs = dense.signbit().reshape(-1).to(DEVICE)
    codes = found["w"].view(torch.uint8)
    assert torch.equal(codes[zeros], torch.where(signs, 0x80, 0x00).to(torch.uint8)[zeros])
    assert {table.kernel for table in of_blocks(tables)} == {"quantize_blocks"}


@pytest.mark.parametrize("formula", FORMULAS)
def test_blocks_below_the_floor_of_amax_have_its_scale(formula: str) -> None:
    dense = torch.zeros(SHAPE).bfloat16()
    dense[::3] = 2.0**-133
    dense[:, 7] = -1e-12
    quantize_by_step(dense, (128, 128), (formula, DType.F8E4M3FN, DType.F32), Place.SENDER)


# --- exhaustively -------------------------------------------------------------------------------

LAST = 0x7F7F
"""The bits of the largest finite bfloat16; there are as many positive ones."""
PER_BLOCK = 128 * 128


def every_pair(half: int) -> Tensor:
    """Return a block for every positive amax with every second bfloat16 up to it, of both signs.

    int16 bits `[amaxes * 128, 128]`. Halves 0 and 1 together hold every pair.
    """
    amax = torch.arange(1, LAST + 1, device=DEVICE, dtype=torch.int16)[:, None]
    magnitude = torch.arange(half, LAST + 1, 2, device=DEVICE, dtype=torch.int16)
    rows = torch.empty((LAST, PER_BLOCK), device=DEVICE, dtype=torch.int16)
    rows[:, : len(magnitude)] = torch.minimum(magnitude, amax)
    rows[:, len(magnitude) :] = amax
    rows[:, 1::2] |= -(2**15)
    return rows.view(LAST * 128, 128)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("formula", FORMULAS)
def test_every_value_under_every_amax_has_the_bits_of_the_sources(
    formula: str, half: int, tables: list[Table]
) -> None:
    dense = every_pair(half).view(torch.bfloat16)
    shape, whole = tuple(dense.shape), [box((0, 0), tuple(dense.shape))]
    sender = plainly(shape, DType.BF16, whole)
    receiver = in_blocks(shape, DType.F8E4M3FN, whole, Scaling((128, 128), (0, 0), DType.F32))
    how = edge(sender, receiver, op=Op.QUANTIZE, formula=formula)
    rank = ranks(plan(sender, receiver, [how]), Side.SENDER, {0: {"w": dense.view(-1)}})[0]
    kernels = rank.bind()
    assert [table.kernel for table in of_blocks(tables)] == ["quantize_blocks"]
    kernels.begin()
    kernels.run(0)
    size = dense.numel()
    codes = rank.slots[0][:size].view(LAST, PER_BLOCK)
    scales = rank.slots[0][size : size + 4 * LAST].view(torch.float32)
    wrong = 0
    for at in range(0, LAST, 2048):
        part = slice(at, min(at + 2048, LAST))
        wanted, scale = upstream(dense.view(LAST, PER_BLOCK)[part], formula)
        wrong += int((codes[part] != wanted.view(torch.uint8)).sum())
        wrong += int((scales[part] != scale[:, 0]).sum())
    assert wrong == 0

"""Cells, shards of cells, stored scales and refusals of quantization."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tranship.runtime.quantization import (
    FORMULAS,
    cell_amax,
    dequantize,
    encode,
    quantize,
    round_scale,
)

Length = int | Literal["all"]
Blocks = tuple[Length, ...]

E4M3 = torch.float8_e4m3fn
E8M0 = torch.float8_e8m0fnu

each_formula = pytest.mark.parametrize("formula", list(FORMULAS))


def random_values(*shape: int) -> torch.Tensor:
    """Draw values over many binades."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(shape, generator=generator) * 4
    return (torch.randn(shape, generator=generator) * spread.exp2()).bfloat16()


def to_codes(
    values: torch.Tensor,
    block: Blocks,
    formula: str = "divide",
    scale_dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to e4m3 and return the codes as bytes."""
    args: dict[str, Any] = {"code_dtype": E4M3, "scale_dtype": scale_dtype, **options}
    codes, scales = quantize(values, block, formula=formula, **args)
    return codes.contiguous().view(torch.uint8), scales


# --- cells --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "block", "cells"),
    [
        ((576, 300), (128, 128), (5, 3)),
        ((5, 7), (1, "all"), (5, 1)),
        ((5, 7), ("all", "all"), (1, 1)),
        ((3, 130, 64), (1, 128, 128), (3, 2, 1)),
        ((0, 7), (128, 4), (0, 2)),
        ((0, 7), ("all", 4), (1, 2)),
        ((), (), ()),
    ],
)
def test_cell_counts(sizes: tuple[int, ...], block: Blocks, cells: tuple[int, ...]) -> None:
    assert cell_amax(random_values(*sizes), block).shape == cells


def test_cells_without_values_have_amax_zero() -> None:
    assert cell_amax(torch.ones(0, 3), ("all", 2)).tolist() == [[0.0, 0.0]]


def test_origin_makes_the_first_cell_partial() -> None:
    values = torch.arange(1.0, 301.0)
    assert cell_amax(values, (128,), origin=(40,)).tolist() == [88.0, 216.0, 300.0]
    assert cell_amax(values, (128,), origin=(168,)).tolist() == [88.0, 216.0, 300.0]
    assert cell_amax(values, ("all",), origin=(40,)).tolist() == [300.0]
    assert cell_amax(values[:0], (128,), origin=(40,)).tolist() == []


def test_amax_is_exact_and_keeps_nan() -> None:
    values = torch.tensor([[-3.0, 1.0, math.nan], [2.0, -math.inf, 5.0]]).bfloat16()
    amax = cell_amax(values, (2, 1))
    assert amax.dtype == torch.float32
    assert amax[0].tolist()[:2] == [3.0, math.inf]
    assert amax[0, 2].isnan()


@pytest.mark.parametrize("block", [(2, 3, 4), (1, "all", 1), ("all", 2, "all")])
def test_slices_agree_with_the_stack(block: Blocks) -> None:
    """A slice quantized with the amax of its cells has the codes that the whole has there."""
    values = random_values(4, 7, 10)
    joint = cell_amax(values, block)
    codes, scales = to_codes(values, block, amax=joint)
    for row in range(7):
        at = 0 if block[1] == "all" else row // block[1]
        part = to_codes(values[:, row], (block[0], block[2]), amax=joint[:, at])
        assert torch.equal(part[0], codes[:, row])
        assert torch.equal(part[1], scales[:, at])


def test_strided_values_give_the_same_codes() -> None:
    values = random_values(40, 24)
    codes, scales = to_codes(values, (16, 8))
    turned_codes, turned_scales = to_codes(values.t(), (8, 16))
    assert torch.equal(turned_codes.t(), codes)
    assert torch.equal(turned_scales.t(), scales)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 30),
    cut=st.integers(0, 30),
    length=st.one_of(st.integers(1, 9), st.just("all")),
    start=st.integers(0, 12),
    formula=st.sampled_from(list(FORMULAS)),
)
def test_shards_with_reduced_amax_equal_the_whole(
    rows: int, cut: int, length: Length, start: int, formula: str
) -> None:
    """Shards that cut a cell agree with the whole once its amax is reduced over them."""
    block: Blocks = (length, 4)
    values = random_values(rows, 6)
    codes, scales = to_codes(values, block, formula, origin=(start, 0))
    cut = min(cut, rows)
    shards = [(values[:cut], start), (values[cut:], start + cut)]
    reduced = torch.zeros_like(scales)
    places: list[slice] = []
    for shard, at in shards:
        amax = cell_amax(shard, block, origin=(at, 0))
        first = 0 if length == "all" else at // length - start // length
        places.append(slice(first, first + amax.shape[0]))
        reduced[places[-1]] = torch.maximum(reduced[places[-1]], amax)
    parts: list[torch.Tensor] = []
    for (shard, at), place in zip(shards, places, strict=True):
        part = to_codes(shard, block, formula, origin=(at, 0), amax=reduced[place])
        assert torch.equal(part[1], scales[place])
        parts.append(part[0])
    assert torch.equal(torch.cat(parts), codes)


# --- stored scales and the way back -------------------------------------------------------------


def test_e8m0_holds_every_power_of_two_exactly() -> None:
    scales = torch.tensor([math.ldexp(1.0, code - 127) for code in range(255)])
    stored = round_scale(scales, E8M0)
    assert stored.view(torch.uint8).tolist() == list(range(255))
    assert torch.equal(stored.float(), scales)


def test_e8m0_keeps_broken_scales_visible() -> None:
    stored = round_scale(torch.tensor([math.nan, math.inf]), E8M0)
    assert stored.view(torch.uint8).tolist() == [0xFF, 0xFF]


@pytest.mark.parametrize("scale", [0.0, 3.0, -2.0, 2.0**-128, 1.0000001])
def test_e8m0_refuses_what_it_would_round(scale: float) -> None:
    with pytest.raises(ValueError, match="no power of two"):
        round_scale(torch.tensor([1.0, scale]), E8M0)


def test_power_of_two_stores_exponents() -> None:
    values = torch.tensor([448.0, 449.0, 0.0, math.nan]).bfloat16()
    codes, scales = to_codes(values, (1,), "power_of_two", E8M0)
    # bfloat16 rounds 449 to 448; the floor of 1e-4 gives 2 ** -22.
    assert scales.view(torch.uint8).tolist() == [127, 127, 127 - 22, 0xFF]
    assert codes.tolist() == [0x7E, 0x7E, 0, 0x7F]


def test_bf16_scales_round_to_nearest_even() -> None:
    bits = np.random.default_rng(0).integers(0, 0x7F7F0000, 20_000, dtype=np.int64)
    bits[:4] = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF]  # two ties, both sides of a tie
    upper = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.int16)
    scales = torch.from_numpy(bits.astype(np.int32)).view(torch.float32)
    stored = round_scale(scales, torch.bfloat16)
    assert torch.equal(stored.view(torch.int16), torch.from_numpy(upper))


@each_formula
def test_scale_dtype_does_not_touch_the_codes(formula: str) -> None:
    values = random_values(9, 9)
    codes, scales = to_codes(values, (4, 4), formula)
    same_codes, rounded = to_codes(values, (4, 4), formula, torch.bfloat16)
    assert torch.equal(codes, same_codes)
    assert torch.equal(rounded, scales.bfloat16())


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, E8M0])
def test_dequantize_multiplies_in_float32_and_rounds_once(scale_dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(E4M3)
    codes = codes[:, codes[0].float().isfinite()]
    factor = 1.0 if scale_dtype == E8M0 else 1.7
    scales = round_scale(torch.tensor([[2.0**-9], [1.0], [2.0**5]]) * factor, scale_dtype)
    product = codes.float().numpy() * scales.float().numpy()
    restored = dequantize(codes, scales, (1, "all"), dtype=torch.bfloat16)
    assert torch.equal(restored, torch.from_numpy(product).bfloat16())


def test_dequantize_finds_the_cells_from_the_origin() -> None:
    codes = torch.ones(6).to(E4M3)
    restored = dequantize(
        codes, torch.tensor([2.0, 4.0, 8.0]), (4,), dtype=torch.float16, origin=(3,)
    )
    assert restored.tolist() == [2.0, 4.0, 4.0, 4.0, 4.0, 8.0]


# --- refusals -----------------------------------------------------------------------------------

ONES = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": ONES.double()}, "do not convert to float32"),
        ({"values": ONES.int()}, "do not convert to float32"),
        ({"block": (2,)}, "differ in dims"),
        ({"origin": (0,)}, "differ in dims"),
        ({"block": (0, 2)}, "at least 1"),
        ({"origin": (-1, 0)}, "at least 0"),
        ({"amax": torch.ones(1, 2)}, "there are"),
        ({"formula": "round_up"}, "unknown formula 'round_up'"),
        ({"code_dtype": torch.bfloat16}, "codes cannot be"),
        ({"scale_dtype": torch.float16}, "scales cannot be"),
        ({"scale_dtype": E8M0}, "powers of two only"),
    ],
)
def test_quantize_refuses(changes: dict[str, Any], message: str) -> None:
    args: dict[str, Any] = {"values": ONES, "block": (2, 2), **changes}
    with pytest.raises(ValueError, match=message):
        to_codes(**args)


def test_encode_refuses_rounded_scales_and_missing_amax() -> None:
    args: dict[str, Any] = {"block": (4, 4), "formula": "rescale", "code_dtype": E4M3}
    with pytest.raises(ValueError, match="float32 scales"):
        encode(ONES, torch.ones(1, 1).bfloat16(), **args)
    with pytest.raises(ValueError, match="amax, which is missing"):
        encode(ONES, torch.ones(1, 1), **args)
    with pytest.raises(ValueError, match="amax have shape"):
        encode(ONES, torch.ones(1, 1), amax=torch.ones(2, 1), **args)


def test_dequantize_refuses_other_dtypes_and_shapes() -> None:
    codes, scales = torch.ones(4, 4).to(E4M3), torch.ones(2, 2)
    with pytest.raises(ValueError, match="codes cannot be"):
        dequantize(codes.view(torch.uint8), scales, (2, 2), dtype=torch.float32)
    with pytest.raises(ValueError, match="scales cannot be"):
        dequantize(codes, scales.to(torch.uint8), (2, 2), dtype=torch.float32)
    with pytest.raises(ValueError, match="scales have shape"):
        dequantize(codes, scales, (4, 2), dtype=torch.float32)

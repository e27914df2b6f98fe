"""The arithmetic of quantization, against a NumPy loop over cells, CUDA digests and known tiles."""

import hashlib
import math
from itertools import pairwise, product
from typing import Any, Literal, cast, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tranship.runtime.quantization import FORMULAS, dequantize, quantize, scale_from_amax
from tranship.schema.formulas import FormulaName

F32 = np.float32
Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Blocks = tuple[int | Literal["all"], ...]
Grid = tuple[tuple[int, ...], Blocks, tuple[int, ...]]

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
NAN_CODE = 0x7F

each_formula = pytest.mark.parametrize("formula", list(FORMULAS))
each_code_dtype = pytest.mark.parametrize("code_dtype", [E4M3, E5M2], ids=["e4m3", "e5m2"])


# --- the oracle ---------------------------------------------------------------------------------


def code_values(code_dtype: torch.dtype) -> NDArray[np.float64]:
    """List the finite values of codes 0, 1, 2, ... by the definition of the format."""
    mantissa_bits, bias, last = (3, 7, 0x7E) if code_dtype == E4M3 else (2, 15, 0x7B)
    values: list[float] = []
    for code in range(last + 1):
        exponent, mantissa = divmod(code, 1 << mantissa_bits)
        fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
        values.append(math.ldexp(fraction, max(exponent, 1) - bias))
    return np.array(values)


CODE_VALUES = {dtype: code_values(dtype) for dtype in LARGEST}


def nearest_codes(scaled: Floats, code_dtype: torch.dtype) -> Codes:
    """Search the nearest code; a tie goes to the even code, what lies beyond saturates."""
    values = CODE_VALUES[code_dtype]
    middles = (values[1:] + values[:-1]) / 2
    magnitude = np.abs(scaled).astype(np.float64)
    lower = np.searchsorted(middles, magnitude, side="left")
    upper = np.searchsorted(middles, magnitude, side="right")
    even = np.where(lower % 2 == 0, lower, upper)
    return (even + 128 * np.signbit(scaled)).astype(np.uint8)


def expected_scale(amax: F32, formula: str, code_dtype: torch.dtype) -> F32:
    scale = np.maximum(amax, F32(1e-4)) * (F32(1) / F32(LARGEST[code_dtype]))
    if formula != "power_of_two":
        return scale
    fraction, exponent = math.frexp(scale)
    return F32(math.ldexp(1.0, exponent - (fraction == 0.5)))


def expected_cell(
    values: Floats, amax: F32, formula: str, code_dtype: torch.dtype
) -> tuple[Codes, F32]:
    scale = expected_scale(amax, formula, code_dtype)
    if formula == "divide":
        scaled = values / scale
    elif formula == "rescale":
        scaled = values * ((F32(1) / np.maximum(amax, F32(1e-4))) * F32(LARGEST[code_dtype]))
    else:
        scaled = values * (F32(1) / scale)
    return nearest_codes(scaled, code_dtype), scale


def edges(size: int, length: int | str, start: int) -> list[slice]:
    """Cut positions 0..size wherever a cell of the grid ends."""
    if length == "all":
        return [slice(0, size)]
    cuts = [at for at in range(1, size) if (start + at) % int(length) == 0]
    return [slice(*pair) for pair in pairwise([0, *cuts, size])] if size else []


def expected(
    values: Floats, block: Blocks, formula: str, code_dtype: torch.dtype, origin: tuple[int, ...]
) -> tuple[Codes, Floats]:
    """Quantize finite values cell by cell."""
    grid = [edges(*dim) for dim in zip(values.shape, block, origin, strict=True)]
    codes = np.zeros(values.shape, np.uint8)
    scales = np.zeros([len(cells) for cells in grid], F32)
    for index in product(*(range(len(cells)) for cells in grid)):
        cell = tuple(cells[at] for cells, at in zip(grid, index, strict=True))
        amax = np.abs(values[cell]).max(initial=F32(0))
        codes[cell], scales[index] = expected_cell(values[cell], amax, formula, code_dtype)
    return codes, scales


# --- inputs -------------------------------------------------------------------------------------


def code_bytes(codes: torch.Tensor) -> Codes:
    return codes.contiguous().view(torch.uint8).cpu().numpy()


def bf16_from_bits(bits: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


ALL_AMAX = bf16_from_bits(np.arange(1, 0x7F80))


def amax_sweep() -> torch.Tensor:
    """Rows of bfloat16 values of either sign, from 0 up to an amax of the row's own."""
    amax = np.append(np.arange(1, 0x7F80, 97), 0x7F7F)
    magnitude = np.minimum(np.arange(0, 0x7F80, 7)[None, :], amax[:, None])
    magnitude[:, 1::2] += 0x8000
    return bf16_from_bits(magnitude)


def random_values(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw values over many binades."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(shape, generator=generator) * 4
    return (torch.randn(shape, generator=generator) * spread.exp2()).bfloat16()


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Draw sizes, a block and an origin, one entry of each per dim."""
    dims = draw(st.integers(1, 3))
    lengths = st.one_of(st.integers(1, 6), st.just("all"))
    sizes = tuple(draw(st.integers(0, 11)) for _ in range(dims))
    block = tuple(draw(lengths) for _ in range(dims))
    return sizes, cast(Blocks, block), tuple(draw(st.integers(0, 9)) for _ in range(dims))


def to_codes(
    values: torch.Tensor,
    block: Blocks,
    formula: str,
    code_dtype: torch.dtype = E4M3,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    scale_dtype = torch.float32
    args: dict[str, Any] = {"code_dtype": code_dtype, "scale_dtype": scale_dtype, **options}
    return quantize(values, block, formula=formula, **args)


# --- scales -------------------------------------------------------------------------------------


def test_registry_holds_every_name() -> None:
    assert tuple(FORMULAS) == get_args(FormulaName)
    assert all(name == formula.name for name, formula in FORMULAS.items())


@each_code_dtype
@each_formula
def test_scale_of_every_bf16_amax(formula: str, code_dtype: torch.dtype) -> None:
    scales = scale_from_amax(ALL_AMAX, formula=formula, code_dtype=code_dtype)
    wanted = [expected_scale(amax, formula, code_dtype) for amax in ALL_AMAX.float().numpy()]
    assert len(wanted) == 32_639
    assert scales.dtype == torch.float32
    assert np.array_equal(scales.numpy(), np.array(wanted))


def test_power_of_two_equals_the_clamped_bit_form() -> None:
    """SGLang and DeepGEMM clamp the exponent to 1..254; here nothing reaches the clamp."""
    scales = ALL_AMAX.float().clamp(min=1e-4) * (1 / 448)
    bits = scales.numpy().view(np.int32)
    exponent = np.clip((bits >> 23) + ((bits & 0x7FFFFF) != 0), 1, 254)
    made = scale_from_amax(ALL_AMAX, formula="power_of_two", code_dtype=E4M3)
    assert np.array_equal(made.numpy().view(np.int32), exponent << 23)


@each_formula
def test_scale_of_broken_amax_is_not_finite(formula: str) -> None:
    amax = torch.tensor([math.nan, math.inf, 1.0])
    scales = scale_from_amax(amax, formula=formula, code_dtype=E4M3)
    assert scales.isfinite().tolist() == [False, False, True]
    assert scales.isnan().tolist() == [True, formula == "power_of_two", False]


# --- codes --------------------------------------------------------------------------------------


@each_code_dtype
def test_oracle_table_is_the_format_that_torch_has(code_dtype: torch.dtype) -> None:
    table = CODE_VALUES[code_dtype]
    torch_values = torch.arange(128, dtype=torch.uint8).view(code_dtype).double().numpy()
    assert np.array_equal(table, torch_values[: len(table)])
    assert not np.isfinite(torch_values[len(table) :]).any()
    assert np.isnan(torch_values[NAN_CODE])


@each_code_dtype
@each_formula
def test_sweep_matches_the_loop(formula: str, code_dtype: torch.dtype) -> None:
    values = amax_sweep()
    codes, scales = to_codes(values, (1, "all"), formula, code_dtype)
    wanted = expected(values.float().numpy(), (1, "all"), formula, code_dtype, (0, 0))
    assert np.array_equal(code_bytes(codes), wanted[0])
    assert np.array_equal(scales.numpy(), wanted[1])


@settings(max_examples=200, deadline=None)
@given(
    grid=grids(),
    formula=st.sampled_from(list(FORMULAS)),
    code_dtype=st.sampled_from([E4M3, E5M2]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_any_grid_matches_the_loop(
    grid: Grid, formula: str, code_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    sizes, block, origin = grid
    values = random_values(*sizes).clamp(-6e4, 6e4).to(dtype)
    codes, scales = to_codes(values, block, formula, code_dtype, origin=origin)
    wanted = expected(values.float().numpy(), block, formula, code_dtype, origin)
    assert np.array_equal(code_bytes(codes), wanted[0])
    assert np.array_equal(scales.numpy(), wanted[1])


def upstream(x: torch.Tensor, formula: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows as the sources named in the registry write it; right on CUDA only."""
    amax = x.abs().float().amax(dim=1, keepdim=True).clamp(1e-4)
    scale = amax / 448.0
    if formula == "divide":
        return (x.float() / scale).to(E4M3), scale
    if formula == "rescale":
        return (x * (448.0 / amax)).to(E4M3), scale
    if formula == "power_of_two":
        bits = scale.view(torch.int)
        exponent = ((bits >> 23) & 0xFF) + (bits & 0x7FFFFF).bool().int()
        scale = (exponent.clamp(1, 254) << 23).view(torch.float)
    return (x * (1.0 / scale)).to(E4M3), scale


# SHA-256, first 16 digits, of the codes and scales that `upstream` makes of `amax_sweep()` on an
# NVIDIA H100 with torch 2.11.0 for CUDA 13.0.
CUDA_DIGESTS = {
    "divide": ("7ddd73a067cadc64", "1c75fbfc10fd3578"),
    "reciprocal": ("97255607654dccc7", "1c75fbfc10fd3578"),
    "rescale": ("3717c985e2980e63", "1c75fbfc10fd3578"),
    "power_of_two": ("61661c0e3f6ca2e4", "de479d2f78f448c0"),
}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(code_bytes(tensor).tobytes()).hexdigest()[:16]


@each_formula
def test_sweep_has_the_bits_of_upstream_on_cuda(formula: str) -> None:
    codes, scales = to_codes(amax_sweep(), (1, "all"), formula)
    assert (digest(codes), digest(scales)) == CUDA_DIGESTS[formula]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_formula
def test_cuda_tensors_give_the_same_bits(formula: str) -> None:
    values = amax_sweep().cuda()
    codes, scales = to_codes(values, (1, "all"), formula)
    upstream_codes, upstream_scales = upstream(values, formula)
    assert digest(codes) == digest(upstream_codes) == CUDA_DIGESTS[formula][0]
    assert digest(scales) == digest(upstream_scales) == CUDA_DIGESTS[formula][1]


# --- special values -----------------------------------------------------------------------------

TINY = 2.0**-133  # the smallest bfloat16
HUGE = float(torch.finfo(torch.bfloat16).max)
FLOOR = float(F32(1e-4) * (F32(1) / F32(448)))
HUGE_SCALE = float(F32(HUGE) * (F32(1) / F32(448)))
TILES: dict[str, tuple[list[float], float, list[int], float, list[int]]] = {
    # values; scale and codes of the formulas that divide by 448; those of power_of_two
    "zero": ([0.0, 0.0], FLOOR, [0, 0], 2.0**-22, [0, 0]),
    "negative zero": ([-0.0, 0.0], FLOOR, [0x80, 0], 2.0**-22, [0x80, 0]),
    "subnormal": ([TINY, -TINY], FLOOR, [0, 0x80], 2.0**-22, [0, 0x80]),
    "1e-12": ([1e-12, -1e-12], FLOOR, [0, 0x80], 2.0**-22, [0, 0x80]),
    "1e-7": ([1e-7, -1e-7], FLOOR, [0x2E, 0xAE], 2.0**-22, [0x2D, 0xAD]),
    "1e-5": ([1e-5, -5e-6], FLOOR, [0x63, 0xDB], 2.0**-22, [0x62, 0xDA]),
    "448": ([448.0, 1.0], 1.0, [0x7E, 0x38], 1.0, [0x7E, 0x38]),
    "largest": ([HUGE, 1.0], HUGE_SCALE, [0x7E, 0], 2.0**120, [0x78, 0]),
}


@pytest.mark.parametrize("tile", list(TILES))
@each_formula
def test_special_tiles(tile: str, formula: str) -> None:
    """Scales and codes as measured with SGLang's and DeepGEMM's functions on an H100."""
    values, scale, wanted, power_scale, power_wanted = TILES[tile]
    codes, scales = to_codes(torch.tensor(values).bfloat16(), ("all",), formula)
    power = formula == "power_of_two"
    assert code_bytes(codes).tolist() == (power_wanted if power else wanted)
    assert scales.item() == (power_scale if power else scale)


@pytest.mark.parametrize(
    "broken",
    [[math.nan], [math.inf], [-math.inf], [math.inf, math.nan], [-math.nan, 3.0]],
    ids=["nan", "inf", "-inf", "inf and nan", "-nan"],
)
@each_code_dtype
@each_formula
def test_broken_value_poisons_its_cell_alone(
    formula: str, code_dtype: torch.dtype, broken: list[float]
) -> None:
    values = random_values(6, 8)
    sound_codes, sound_scales = to_codes(values, (3, 4), formula, code_dtype)
    values[1, 4 : 4 + len(broken)] = torch.tensor(broken).bfloat16()
    codes, scales = to_codes(values, (3, 4), formula, code_dtype)
    wanted = code_bytes(sound_codes).copy()
    wanted[:3, 4:] = NAN_CODE
    assert np.array_equal(code_bytes(codes), wanted)
    assert scales.isfinite().tolist() == [[True, False], [True, True]]
    assert torch.equal(scales[scales.isfinite()], sound_scales[scales.isfinite()])
    assert dequantize(codes, scales, (3, 4), dtype=torch.bfloat16)[:3, 4:].isnan().all()


@each_code_dtype
@each_formula
def test_values_beyond_the_given_amax_saturate(formula: str, code_dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, 2.0, -3e38, math.inf, -math.inf, math.nan])
    codes, _ = to_codes(values, ("all",), formula, code_dtype, amax=torch.tensor([0.5]))
    top = len(CODE_VALUES[code_dtype]) - 1
    wanted = [top, top, top | 0x80, NAN_CODE, NAN_CODE, NAN_CODE]
    assert code_bytes(codes).tolist() == wanted


@each_code_dtype
@each_formula
def test_round_trip_error_stays_within_half_a_step(formula: str, code_dtype: torch.dtype) -> None:
    values = random_values(256, 256, seed=1)
    codes, scales = to_codes(values, (128, 128), formula, code_dtype)
    restored = dequantize(codes, scales, (128, 128), dtype=torch.float32)
    half_step, half_smallest = (2.0**-4, 2.0**-10) if code_dtype == E4M3 else (2.0**-3, 2.0**-17)
    scale = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    bound = (values.float().abs() * half_step).maximum(scale * half_smallest) * (1 + 2.0**-20)
    assert ((restored - values.float()).abs() <= bound).all()

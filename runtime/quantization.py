"""Block quantization to FP8 in plain torch: the arithmetic that every kernel must reproduce.

A *cell* is one block of the scale grid, as far as the given values reach into it. All functions
take tensors of any number of dims and a `block` with one entry per dim. They give the same bits
on CPU and CUDA, and the bits that the formulas' sources give on CUDA. That takes care in two
places, because torch does not compute what those sources seem to say (seen with 2.11 on CUDA):

- `amax / 448.0` on CUDA multiplies by `float32(1 / 448)`. The same line on the CPU gives another
  scale for more than half of all bfloat16 amax values.
- `448.0 / amax` is `(1 / amax) * 448.0` on both devices, rounded twice.

Values that are not finite poison their whole cell: the scale is not finite and every code is the
NaN code 0x7f. For NaN the sources agree; for infinity they give an infinite scale, but code 0 at
its finite neighbours. SGLang 0.5.23's power-of-two form differs: it turns NaN and infinity alike
into the finite scale 2 ** 127, with which a broken weight passes every scan of the scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tranship.schema.formulas import FORMULAS, Formula

__all__ = [
    "FORMULAS",
    "Block",
    "cell_amax",
    "dequantize",
    "encode",
    "quantize",
    "round_scale",
    "scale_from_amax",
]

Block: TypeAlias = Sequence[int | Literal["all"]]
"""Elements per cell in each dim; "all" makes one cell of the whole dim."""

_CODE_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float8_e8m0fnu)
_FLOAT32_BITS_BELOW_EXPONENT = 0x007FFFFF
_FLOAT32_EXPONENT_BITS = 0x7F800000


@dataclass(frozen=True, slots=True)
class _Span:
    """How cells lie along one dim: `lead` elements of the first one come before the values."""

    length: int
    lead: int
    count: int


def cell_amax(values: Tensor, block: Block, *, origin: Sequence[int] | None = None) -> Tensor:
    """Find the largest magnitude in every cell.

    Args:
        values: floating-point tensor that float32 holds exactly (not float64).
        block: cell sizes, one entry per dim.
        origin: position of `values[0, ..., 0]` on the grid. Values that start at row 40 of a grid
            of 128 rows give a first cell of 88 rows. Default: zeros. It has no effect in dims
            whose block is "all".

    Returns:
        float32, one entry per cell that the values touch. Cells at the edges may be partial. A dim
        of size 0 has no cells, or one of amax 0 if its block is "all". NaN propagates.

    Raises:
        ValueError: `block` or `origin` does not fit the dims, or the dtype is not accepted.
    """
    spans = _spans(values.shape, block, origin)
    padding: list[int] = []
    tiled: list[int] = []
    for span, size in zip(spans, values.shape, strict=True):
        # torch lists padding from the last dim to the first.
        padding = [span.lead, span.count * span.length - span.lead - size, *padding]
        tiled += [span.count, span.length]
    magnitudes = torch.nn.functional.pad(_float32(values).abs(), padding)
    return _one_nan(magnitudes.reshape(tiled).amax(dim=tuple(range(1, len(tiled), 2))))


def scale_from_amax(amax: Tensor, *, formula: str, code_dtype: torch.dtype) -> Tensor:
    """Compute the scale (the multiplier that turns codes back into values) of every cell.

    Args:
        amax: largest magnitude per cell, as `cell_amax` returns it or reduced over ranks.
        formula: a name in `FORMULAS`.
        code_dtype: torch.float8_e4m3fn (largest value 448) or torch.float8_e5m2 (57344).

    Returns:
        float32, shaped like `amax`, never zero. An amax of NaN gives NaN; an infinite one gives
        infinity, and NaN under `power_of_two`, where e8m0 has no infinity.

    Raises:
        ValueError: unknown formula or code dtype.
    """
    chosen = _formula(formula)
    scales = _floored(amax, chosen) * (1.0 / _largest(code_dtype))
    if not chosen.power_of_two:
        return scales
    # Adding all bits below the exponent carries into it unless they are all zero. The floor and
    # the range of float32 keep the exponent between 1 and 254 without a clamp.
    bits = (scales.view(torch.int32) + _FLOAT32_BITS_BELOW_EXPONENT) & _FLOAT32_EXPONENT_BITS
    return torch.where(scales.isfinite(), bits.view(torch.float32), torch.nan)


def encode(
    values: Tensor,
    scales: Tensor,
    block: Block,
    *,
    formula: str,
    code_dtype: torch.dtype,
    origin: Sequence[int] | None = None,
    amax: Tensor | None = None,
) -> Tensor:
    """Turn values into codes with the given scales.

    Args:
        values: as in `cell_amax`.
        scales: float32, one per cell, as `scale_from_amax` returns them, before any rounding to
            the dtype in which they are stored.
        block: cell sizes, one entry per dim.
        formula: a name in `FORMULAS`.
        code_dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        origin: as in `cell_amax`.
        amax: what the scales were made from. `rescale` needs it, since it multiplies by a quotient
            of amax that the scale does not determine; the other formulas ignore it.

    Returns:
        Codes shaped like `values`. Finite values beyond the largest code value saturate to it
        (possible only if `scales` came from a smaller amax). NaN and infinity, and every value
        of a cell whose scale is not finite, become 0x7f, NaN in both code dtypes.

    Raises:
        ValueError: a shape, dtype or formula does not fit, or `rescale` lacks `amax`.
    """
    spans = _spans(values.shape, block, origin)
    _require_cells("scales", scales, spans)
    if scales.dtype != torch.float32:
        raise ValueError(f"encode takes float32 scales, not {scales.dtype}")
    exact = _float32(values)
    largest = _largest(code_dtype)
    if formula == "divide":
        scaled = exact / _spread(scales, spans, values.shape)
    else:
        factors = _factors(scales, amax, _formula(formula), largest, spans)
        scaled = exact * _spread(factors, spans, values.shape)
    sound = exact.isfinite() & _spread(scales.isfinite(), spans, values.shape)
    # Conversion alone does not do: torch versions differ in whether it saturates, the sign of
    # NaN depends on the processor, and e5m2 has infinities.
    return torch.where(sound, scaled.clamp(-largest, largest), torch.nan).to(code_dtype)


def quantize(
    values: Tensor,
    block: Block,
    *,
    formula: str,
    code_dtype: torch.dtype,
    scale_dtype: torch.dtype,
    origin: Sequence[int] | None = None,
    amax: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantize values to codes and scales.

    No formula rounds the scale before it makes the codes: they come from the float32 scale, and
    `scale_dtype` decides only how that scale is stored. With bfloat16 the receiver therefore
    multiplies by a scale up to 2 ** -8 (relative) away from the one that the codes were made
    with, as AReaL does by default (fp8/quantize.py).

    Args:
        values: as in `cell_amax`.
        block: cell sizes, one entry per dim.
        formula: a name in `FORMULAS`.
        code_dtype: torch.float8_e4m3fn or torch.float8_e5m2.
        scale_dtype: torch.float32, torch.bfloat16, or torch.float8_e8m0fnu for `power_of_two`.
        origin: as in `cell_amax`.
        amax: amax per cell where the values are only a part of each cell; without it their own.

    Returns:
        Codes shaped like `values`, and one scale per cell.

    Raises:
        ValueError: a shape, dtype or formula does not fit, or the formula's scales have no exact
            form in `scale_dtype`.
    """
    if scale_dtype == torch.float8_e8m0fnu and not _formula(formula).power_of_two:
        raise ValueError(f"e8m0 holds powers of two only, which formula {formula!r} does not make")
    amax = cell_amax(values, block, origin=origin) if amax is None else amax
    scales = scale_from_amax(amax, formula=formula, code_dtype=code_dtype)
    codes = encode(
        values,
        scales,
        block,
        formula=formula,
        code_dtype=code_dtype,
        origin=origin,
        amax=amax,
    )
    return codes, round_scale(scales, scale_dtype)


def dequantize(
    codes: Tensor,
    scales: Tensor,
    block: Block,
    *,
    dtype: torch.dtype,
    origin: Sequence[int] | None = None,
) -> Tensor:
    """Turn codes back into values: `float32(code) * float32(scale)`, rounded once to `dtype`.

    Args:
        codes: float8_e4m3fn or float8_e5m2.
        scales: float32, bfloat16 or float8_e8m0fnu, one per cell.
        block: cell sizes, one entry per dim.
        dtype: floating-point dtype of the result.
        origin: as in `cell_amax`.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    spans = _spans(codes.shape, block, origin)
    _require_cells("scales", scales, spans)
    _require_dtype("codes", codes.dtype, _CODE_DTYPES)
    _require_dtype("scales", scales.dtype, _SCALE_DTYPES)
    values = codes.float() * _spread(scales.float(), spans, codes.shape)
    return values.to(dtype)


def round_scale(scales: Tensor, scale_dtype: torch.dtype) -> Tensor:
    """Convert float32 scales to the dtype in which they are stored.

    Args:
        scales: float32.
        scale_dtype: torch.float32 (unchanged), torch.bfloat16 (nearest, ties to even), or
            torch.float8_e8m0fnu, whose bytes are biased exponents (`.view(torch.uint8)`). There
            NaN and infinity become 0xff, NaN; elsewhere every NaN becomes the quiet positive one.

    Raises:
        ValueError: another dtype, or e8m0 for a finite scale that is no power of two from
            2 ** -127 to 2 ** 127.
    """
    _require_dtype("scales", scale_dtype, _SCALE_DTYPES)
    stored = scales.to(scale_dtype)
    if scale_dtype == torch.float8_e8m0fnu:
        inexact = scales.isfinite() & (stored.float() != scales)
        if inexact.any():
            wrong = float(scales[inexact][0])
            raise ValueError(f"scale {wrong!r} is no power of two, and e8m0 must hold it exactly")
        return stored
    return _one_nan(stored)


def _one_nan(values: Tensor) -> Tensor:
    """Give every NaN the bits of the positive quiet one: devices disagree on the others."""
    bits, nan = (
        (torch.int32, 0x7FC00000) if values.dtype == torch.float32 else (torch.int16, 0x7FC0)
    )
    return values.view(bits).masked_fill(values.isnan(), nan).view(values.dtype)


def _formula(name: str) -> Formula:
    if name not in FORMULAS:
        raise ValueError(f"unknown formula {name!r}; there are {', '.join(FORMULAS)}")
    return FORMULAS[name]


def _floored(amax: Tensor, formula: Formula) -> Tensor:
    """Raise small amax to the formula's floor; torch's clamp keeps NaN."""
    return _float32(amax).clamp(min=formula.amax_floor)


def _factors(
    scales: Tensor, amax: Tensor | None, formula: Formula, largest: float, spans: list[_Span]
) -> Tensor:
    """Return what the formula multiplies the values of each cell by."""
    if formula.name != "rescale":
        return scales.reciprocal()
    if amax is None:
        raise ValueError("formula 'rescale' encodes from amax, which is missing")
    _require_cells("amax", amax, spans)
    return _floored(amax, formula).reciprocal() * largest


def _largest(code_dtype: torch.dtype) -> float:
    _require_dtype("codes", code_dtype, _CODE_DTYPES)
    return torch.finfo(code_dtype).max


def _float32(values: Tensor) -> Tensor:
    if not values.is_floating_point() or values.dtype == torch.float64:
        raise ValueError(f"{values.dtype} values do not convert to float32 exactly")
    return values.float()


def _spans(sizes: Sequence[int], block: Block, origin: Sequence[int] | None) -> list[_Span]:
    """Lay the grid over the values, dim by dim."""
    starts = [0] * len(sizes) if origin is None else origin
    if not len(sizes) == len(block) == len(starts):
        raise ValueError(f"sizes {tuple(sizes)}, block {block} and origin {starts} differ in dims")
    return [_span(*entries) for entries in zip(sizes, block, starts, strict=True)]


def _span(size: int, length: int | Literal["all"], start: int) -> _Span:
    if length == "all":
        return _Span(max(size, 1), 0, 1)
    if length < 1 or start < 0:
        raise ValueError(f"block {length} must be at least 1 and origin {start} at least 0")
    if size == 0:
        return _Span(length, 0, 0)
    lead = start % length
    return _Span(length, lead, -(-(lead + size) // length))


def _spread(cells: Tensor, spans: list[_Span], sizes: Sequence[int]) -> Tensor:
    """Repeat each cell's entry over its values; dims of one cell are left to broadcasting."""
    for dim, (span, size) in enumerate(zip(spans, sizes, strict=True)):
        if span.count != 1:
            positions = torch.arange(span.lead, span.lead + size, device=cells.device)
            cells = cells.index_select(dim, positions // span.length)
    return cells


def _require_cells(what: str, cells: Tensor, spans: list[_Span]) -> None:
    expected = tuple(span.count for span in spans)
    if tuple(cells.shape) != expected:
        raise ValueError(f"{what} have shape {tuple(cells.shape)}, but there are {expected} cells")


def _require_dtype(what: str, dtype: torch.dtype, accepted: tuple[torch.dtype, ...]) -> None:
    if dtype not in accepted:
        raise ValueError(f"{what} cannot be {dtype}; they may be {accepted}")

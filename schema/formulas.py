"""The quantization formulas: how the amax of a cell becomes a scale, and a value a code.

A formula belongs to a quantize edge, not to a receiver. Receivers declare a block and a scale
dtype; which arithmetic made the numbers cannot be seen in them afterwards, so a plan names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

FormulaName = Literal["divide", "reciprocal", "rescale", "power_of_two"]
"""Every formula that a transfer file or a plan may name."""


@dataclass(frozen=True, slots=True)
class Formula:
    """One exact float32 arithmetic, every operation rounded to nearest even.

    Attributes:
        name: what transfer files and plans call it.
        title: a few words for reports.
        equation: the arithmetic. `amax` is the cell's largest magnitude after the floor, `largest`
            the largest finite code value, `round` the rounding to the code dtype.
        amax_floor: a smaller amax counts as this one, so that no scale is zero.
        power_of_two: whether every finite scale is a power of two.
        source: code whose results it reproduces bit for bit.
    """

    name: FormulaName
    title: str
    equation: str
    amax_floor: float
    power_of_two: bool
    source: str


_ALL = (
    Formula(
        name="divide",
        title="divide by the scale",
        equation="scale = amax * (1 / largest); code = round(x / scale)",
        amax_floor=1e-4,
        power_of_two=False,
        source="SGLang 0.5.23 mxfp8_block_convert.py, bf16_to_block_fp8_128",
    ),
    Formula(
        name="reciprocal",
        title="multiply by the reciprocal of the scale",
        equation="scale = amax * (1 / largest); code = round(x * (1 / scale))",
        amax_floor=1e-4,
        power_of_two=False,
        source="DeepGEMM utils/math.py and vLLM utils/deep_gemm.py, per_block_cast_to_fp8",
    ),
    Formula(
        name="rescale",
        title="multiply by the rescaled reciprocal of amax",
        equation="scale = amax * (1 / largest); code = round(x * ((1 / amax) * largest))",
        amax_floor=1e-4,
        power_of_two=False,
        source="DeepGEMM tests/test_core.py, per_block_cast_to_fp8 (`448.0 / x_amax`)",
    ),
    Formula(
        name="power_of_two",
        title="divide by the next power of two",
        equation="scale = 2 ** ceil(log2(amax * (1 / largest))); code = round(x * (1 / scale))",
        amax_floor=1e-4,
        power_of_two=True,
        source="SGLang 0.5.23 fp8_utils.py, per_block_cast_to_fp8 and ceil_to_ue8m0",
    ),
)

FORMULAS: Mapping[str, Formula] = MappingProxyType({formula.name: formula for formula in _ALL})
"""The formulas by name."""

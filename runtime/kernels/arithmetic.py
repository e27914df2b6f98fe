# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false, reportInvalidTypeForm=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false
# The language is Triton's, and not Python's.
"""What kernels compute: scales, codes and digests, with the bits of `quantization.py`.

A cell's amax is kept as the bits of a float32 that is not negative, here called `top`: such bits
compare as integers like the numbers they stand for, with infinity and NaN above all of them.
"""

import triton
import triton.language as tl

DIVIDE: tl.constexpr = tl.constexpr(0)
RECIPROCAL: tl.constexpr = tl.constexpr(1)
RESCALE: tl.constexpr = tl.constexpr(2)
POWER_OF_TWO: tl.constexpr = tl.constexpr(3)
"""The formulas by their positions in `FORMULA_NAMES`."""

INFINITY_BITS: tl.constexpr = tl.constexpr(0x7F800000)
BITS_BELOW_EXPONENT: tl.constexpr = tl.constexpr(0x007FFFFF)

# Each formula's constants are those of SplitMix64, see digest.py; int64 holds their bits.
GOLDEN: tl.constexpr = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)


@triton.jit
def mix(words):
    """Mix int64 words as `digest.py` says."""
    bits = words.to(tl.uint64, bitcast=True)
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB
    return (bits ^ (bits >> 31)).to(tl.int64, bitcast=True)


@triton.jit
def scale_from_top(top, FORMULA: tl.constexpr, FLOOR: tl.constexpr, LARGEST: tl.constexpr):
    """Return the float32 scale of cells whose amax has the bits `top`, int32 of any shape."""
    amax = tl.maximum(top.to(tl.float32, bitcast=True), FLOOR)
    scale = amax * (1.0 / LARGEST)
    if FORMULA == POWER_OF_TWO:
        bits = (scale.to(tl.int32, bitcast=True) + BITS_BELOW_EXPONENT) & INFINITY_BITS
        scale = bits.to(tl.float32, bitcast=True)
        scale = tl.where(top < INFINITY_BITS, scale, float("nan"))
    else:
        scale = tl.where(top == INFINITY_BITS, float("inf"), scale)
        scale = tl.where(top > INFINITY_BITS, float("nan"), scale)
    return scale


@triton.jit
def factor_from_scale(
    scale, top, FORMULA: tl.constexpr, FLOOR: tl.constexpr, LARGEST: tl.constexpr
):
    """Return what -x of a cell is multiplied by: a negative number, NaN if the cell is not finite.

    In the fast kernel it comes before values become float32: with 64 registers, the other order
    spills some of them.
    """
    if FORMULA == RESCALE:
        amax = tl.maximum(top.to(tl.float32, bitcast=True), FLOOR)
        factor = tl.div_rn(tl.full(amax.shape, -1.0, tl.float32), amax) * LARGEST
    else:
        factor = tl.div_rn(tl.full(scale.shape, -1.0, tl.float32), scale)
    return tl.where(top < INFINITY_BITS, factor, float("nan"))


@triton.jit
def scaled_values(minus_x, scale, factor, FORMULA: tl.constexpr, CORRECTED: tl.constexpr):
    """Return float32 x in units of its scale, NaN in cells that are not finite.

    It takes -x, and `scale` and `factor` that broadcast with it. With `CORRECTED` a division is a
    multiplication by the reciprocal, and one correction of the rest: that has the bits of IEEE
    division for every bfloat16 x up to every bfloat16 amax, at a third of its cost. Other values
    need the division. With the signs as they are, zeros keep theirs, and nothing is negated that
    has many elements but -x.
    """
    if FORMULA == DIVIDE and not CORRECTED:
        quotient = tl.div_rn(minus_x, tl.broadcast_to(-scale, minus_x.shape))
        scaled = tl.where(factor == factor, quotient, float("nan"))
    else:
        scaled = minus_x * factor
        if FORMULA == DIVIDE:
            excess = tl.fma(scaled, tl.broadcast_to(scale, minus_x.shape), minus_x)
            scaled = tl.fma(excess, tl.broadcast_to(factor, minus_x.shape), scaled)
    return scaled


@triton.jit
def negated(x):
    """Return float32 -x, zeros included; the minus sign would subtract from zero."""
    return x * -1.0


@triton.jit
def store_scales(address, scale, inside, SCALE: tl.constexpr):
    """Store float32 scales as float32, bfloat16 or biased exponents at int64 addresses."""
    if SCALE == tl.float32:
        tl.store(address.to(tl.pointer_type(tl.float32)), scale, mask=inside)
    elif SCALE == tl.bfloat16:
        # The bits of NaN differ between devices: the quiet positive one is written.
        bits = scale.to(tl.bfloat16).to(tl.int16, bitcast=True)
        bits = tl.where(scale == scale, bits, 0x7FC0)
        tl.store(address.to(tl.pointer_type(tl.int16)), bits.to(tl.int16), mask=inside)
    else:
        exponent = (scale.to(tl.int32, bitcast=True) >> 23) & 0xFF
        tl.store(address.to(tl.pointer_type(tl.uint8)), exponent.to(tl.uint8), mask=inside)


@triton.jit
def float_scales(stored, SCALE: tl.constexpr):
    """Return stored scales, loaded as `SCALE` or as uint8 exponents, as float32."""
    if SCALE == tl.uint8:
        exponent = stored.to(tl.int32)
        # 2 ** -127 is below the normal numbers.
        bits = tl.where(exponent == 0, 0x00400000, exponent << 23)
        bits = tl.where(exponent == 0xFF, 0x7FC00000, bits)
        scale = bits.to(tl.float32, bitcast=True)
    else:
        scale = stored.to(tl.float32)
    return scale


@triton.jit
def magnitude_bits(x):
    """Return the bits of the magnitudes of float32 `x`, int32; all NaN have the same."""
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(bits > INFINITY_BITS, 0x7FC00000, bits)

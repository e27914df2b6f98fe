"""Element types that a buffer may hold."""

from enum import StrEnum


class DType(StrEnum):
    """Name of an element type, as written in manifests."""

    F64 = "f64"
    F32 = "f32"
    BF16 = "bf16"
    F16 = "f16"
    F8E4M3FN = "f8e4m3fn"
    F8E5M2 = "f8e5m2"
    F8E8M0FNU = "f8e8m0fnu"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U8 = "u8"
    BOOL = "bool"


ITEM_SIZE: dict[DType, int] = {
    DType.F64: 8,
    DType.I64: 8,
    DType.F32: 4,
    DType.I32: 4,
    DType.BF16: 2,
    DType.F16: 2,
    DType.I16: 2,
    DType.F8E4M3FN: 1,
    DType.F8E5M2: 1,
    DType.F8E8M0FNU: 1,
    DType.I8: 1,
    DType.U8: 1,
    DType.BOOL: 1,
}
"""Bytes per element."""

CODE_DTYPES = frozenset({DType.F8E4M3FN, DType.F8E5M2})
"""Types that a scaled encoding may store its codes in."""

SCALE_DTYPES = frozenset({DType.F32, DType.BF16, DType.F8E8M0FNU})
"""Types that a scaled encoding may store its scales in."""

_EXACT: dict[DType, frozenset[DType]] = {
    DType.F8E4M3FN: frozenset({DType.BF16, DType.F16, DType.F32, DType.F64}),
    DType.F8E5M2: frozenset({DType.BF16, DType.F16, DType.F32, DType.F64}),
    DType.BF16: frozenset({DType.F32, DType.F64}),
    DType.F16: frozenset({DType.F32, DType.F64}),
    DType.F32: frozenset({DType.F64}),
}


def widens(source: DType, target: DType) -> bool:
    """Whether every value of `source` is a value of `target`, both floating point."""
    return source == target or target in _EXACT.get(source, frozenset())


def is_float(dtype: DType) -> bool:
    """Whether `dtype` is a floating point type other than the exponent-only f8e8m0fnu."""
    return dtype.value.startswith(("f", "bf")) and dtype is not DType.F8E8M0FNU

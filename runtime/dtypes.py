"""Element types of the schema as torch dtypes."""

from types import MappingProxyType

import torch

from tranship.schema.dtypes import ITEM_SIZE, DType

TORCH_DTYPES = MappingProxyType(
    {
        DType.F64: torch.float64,
        DType.F32: torch.float32,
        DType.BF16: torch.bfloat16,
        DType.F16: torch.float16,
        DType.F8E4M3FN: torch.float8_e4m3fn,
        DType.F8E5M2: torch.float8_e5m2,
        DType.F8E8M0FNU: torch.float8_e8m0fnu,
        DType.I64: torch.int64,
        DType.I32: torch.int32,
        DType.I16: torch.int16,
        DType.I8: torch.int8,
        DType.U8: torch.uint8,
        DType.BOOL: torch.bool,
    }
)
"""The torch dtype of every `DType`."""

_DTYPES = {torch_dtype: dtype for dtype, torch_dtype in TORCH_DTYPES.items()}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def torch_dtype(dtype: DType) -> torch.dtype:
    """Return the torch dtype of `dtype`."""
    return TORCH_DTYPES[dtype]


def schema_dtype(dtype: torch.dtype) -> DType:
    """Return the `DType` of a torch dtype.

    Raises:
        ValueError: no buffer may hold it.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"buffers of {dtype} cannot take part in a transfer")
    return _DTYPES[dtype]


def bits_dtype(dtype: DType) -> torch.dtype:
    """Return the integer dtype of equal size, in which a copy changes no bit."""
    return _BITS[ITEM_SIZE[dtype]]

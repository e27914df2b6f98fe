"""Parameters that Transformer Engine keeps in FP8 with a scale for every block of 128 x 128.

A `Float8BlockwiseQTensor` has its codes in `_rowwise_data` (uint8) and their scales in
`_rowwise_scale_inv` (float32, rows of scales padded to a multiple of four). What it holds by
columns is a copy for the backward pass. Both are read as attributes: any operation on the parameter
itself would dequantize it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tranship.schema.manifest import Part
from tranship.schema.records import FillRecord, Ints, PieceRecord

BLOCK = 128
"""Rows, and columns, that share a scale."""

CODES, SCALES = "_rowwise_data", "_rowwise_scale_inv"

PADDING = "scales that pad a row"

_DTYPES = {"kFloat8E4M3": torch.float8_e4m3fn, "kFloat8E5M2": torch.float8_e5m2}
"""Dtypes by their names in Transformer Engine."""


@dataclass(frozen=True, slots=True)
class BlockScaled:
    """Codes `[m, k]` in their dtype, and scales `[ceil(m / 128), at least ceil(k / 128)]`."""

    codes: Tensor
    scales: Tensor

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Yield both with the names under which the parameter has them."""
        yield CODES, self.codes
        yield SCALES, self.scales


def part_name(name: str, part: str) -> str:
    """Return the name of a part of a parameter: `fc1._rowwise_data.weight3` of `fc1.weight3`.

    The number of a grouped expert stays at the end, where names may differ in one family.
    """
    owner, dot, key = name.rpartition(".")
    return f"{owner}{dot}{part}.{key}"


def is_quantized(parameter: Tensor) -> bool:
    """Whether Transformer Engine keeps a parameter in FP8 of any kind."""
    return hasattr(parameter, "_fp8_dtype")


def block_scaled(parameter: Any) -> BlockScaled | None:
    """Return the codes and scales of a parameter in blocks of 128 x 128; of any other, None."""
    kinds = {kind.__name__ for kind in type(parameter).__mro__}
    if "Float8BlockwiseQTensor" not in kinds or not parameter._is_2D_scaled:
        return None
    codes, scales = getattr(parameter, CODES), getattr(parameter, SCALES)
    dtype = _DTYPES.get(parameter._fp8_dtype.name)
    if codes is None or scales is None or dtype is None or codes.dim() != 2:
        return None
    return BlockScaled(codes.view(dtype), scales)


class CutBlock(ValueError):
    """A tensor's codes begin or end within a block, whose scale is another tensor's as well."""


def scale_piece(piece: PieceRecord, shape: Ints, scaled: BlockScaled) -> PieceRecord:
    """Return where the scales of a piece of the codes lie, in blocks.

    Args:
        piece: A piece of a tensor of `shape` in the codes.
        shape: The sizes of the tensor.
        scaled: The codes and their scales.

    Raises:
        CutBlock: the piece does not consist of whole blocks of the tensor and of the codes.
    """
    columns = scaled.codes.shape[1]
    place = divmod(piece.offset, columns)
    if piece.step != (1, 1) or piece.strides != scaled.codes.stride():
        raise CutBlock
    for dim in range(2):
        start, extent = piece.start[dim], piece.extent[dim]
        ends = start + extent == shape[dim] and place[dim] + extent == scaled.codes.shape[dim]
        if start % BLOCK or place[dim] % BLOCK or (extent % BLOCK and not ends):
            raise CutBlock
    row = scaled.scales.stride(0)
    return replace(
        piece,
        part=Part.SCALE,
        start=tuple(start // BLOCK for start in piece.start),
        extent=tuple(-(-extent // BLOCK) for extent in piece.extent),
        offset=place[0] // BLOCK * row + place[1] // BLOCK,
        strides=scaled.scales.stride(),
    )


def scale_padding(scaled: BlockScaled) -> FillRecord | None:
    """Return the columns of scales behind those that the codes have."""
    rows, columns = scaled.scales.shape
    used = -(-scaled.codes.shape[1] // BLOCK)
    if used == columns:
        return None
    return FillRecord(used, (rows, columns - used), scaled.scales.stride(), reason=PADDING)

"""The physical layouts that a buffer may have, by name.

A known layout is written through the pieces that a manifest declares. An opaque one is made by the
engine's own post-processing, which must run after an update: `description` says what it makes.

`row_major` memory is what the manifest declares. Of `PACKED_SCALES` a manifest declares the scales
alone, a byte each, row-major and in whole words of four; the engine holds every row of words once
for each row of codes, columns first. What follows from the codes' shape is worked out here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tranship.schema.records import Ints

ROW_MAJOR = "row_major"
"""The layout in which every element lies where shape and strides put it."""

POST_PROCESSED = "engine_post_processed"
"""The layout of what an engine makes anew of the values that it has loaded."""

PACKED_SCALES = "deepgemm_mn_major_ue8m0"
"""Scales as DeepGEMM reads them on Blackwell, and as SGLang 0.5.23 makes them (fp8_utils.py)."""

PACKED_BLOCK = 128
"""Rows, and columns, of the blocks of codes that packed scales are of."""

SCALES_IN_WORD = 4
"""Scales in one int32."""

_ROW_ALIGNMENT = 4
"""Words: columns of packed scales begin at multiples of 16 bytes, as TMA wants them."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout. `known` ones can be written from row-major values, opaque ones only copied."""

    name: str
    known: bool
    description: str


_ALL = (
    Layout(ROW_MAJOR, True, "every element where shape and strides put it"),
    Layout(
        PACKED_SCALES,
        True,
        "DeepGEMM scales: four exponent bytes in an int32, one per row, columns first",
    ),
    Layout(
        POST_PROCESSED,
        False,
        "what the engine's own post-processing puts in the place of what was loaded",
    ),
    Layout(
        "cutlass_w31",
        False,
        "CUTLASS mixture of experts: the rows of the up projection before those of the gate",
    ),
    Layout(
        "cutlass_scale_128x4",
        False,
        "CUTLASS block scales: tiles of 128 rows by 4 scales, swizzled as 32 x 4 x 4",
    ),
    Layout("aiter_shuffle_16x16", False, "AITER: tiles of 16 x 16 elements, as its kernels read"),
    Layout("aiter_shuffle_32x16", False, "AITER: tiles of 32 x 16 elements, as its kernels read"),
    Layout(
        "trtllm_shuffled",
        False,
        "TensorRT-LLM kernels: rows in the order in which a tile of the epilogue writes them",
    ),
    Layout(
        "trtllm_block_major_k",
        False,
        "TensorRT-LLM kernels: shuffled rows, then blocks along the reduced dim outermost",
    ),
    Layout("marlin", False, "Marlin: tiles repacked for weight-only kernels, codes in int32"),
    Layout("machete", False, "Machete: tiles prepacked for Hopper's weight-only kernels"),
)

LAYOUTS: Mapping[str, Layout] = MappingProxyType({layout.name: layout for layout in _ALL})
"""The layouts by name."""


def declared_scales(codes: Ints) -> Ints:
    """Shape in which a manifest declares the packed scales of codes `[..., n, k]`.

    It is `[..., ceil(n / 128), 4 * ceil(k / 512)]` of `f8e8m0fnu`: beyond the last block of a row
    come bytes that belong to no scale.
    """
    *outer, rows, columns = codes
    return (*outer, -(-rows // PACKED_BLOCK), _words(columns) * SCALES_IN_WORD)


def packed_scales(codes: Ints) -> tuple[Ints, Ints]:
    """Shape and strides, in int32, in which an engine holds the packed scales of `[..., n, k]`.

    The shape is `[..., n, ceil(k / 512)]`; neighbours in a column are neighbours in memory, and
    columns begin at multiples of 16 bytes. Byte `b` of word `w` of row `r`, little-endian, is the
    biased exponent of the scale of block `(r // 128, 4 * w + b)`.
    """
    *outer, rows, columns = codes
    words, column = _words(columns), -(-rows // _ROW_ALIGNMENT) * _ROW_ALIGNMENT
    strides = [1, column]
    step = column * words
    for size in reversed(outer):
        strides.insert(0, step)
        step *= size
    return (*outer, rows, words), tuple(strides)


def _words(columns: int) -> int:
    return -(-columns // (PACKED_BLOCK * SCALES_IN_WORD))

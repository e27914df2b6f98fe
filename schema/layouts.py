"""The physical layouts that a buffer may have, by name.

A known layout is written through the pieces that a manifest declares. An opaque one is made by the
engine's own post-processing, which must run after an update: `description` says what it makes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout. `known` ones hold element `i` where the buffer's strides put it."""

    name: str
    known: bool
    description: str


_ALL = (
    Layout("row_major", True, "every element where shape and strides put it"),
    Layout(
        "deepgemm_mn_major_ue8m0",
        False,
        "DeepGEMM scales: four exponent bytes in an int32, one per row, columns first",
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

"""Declare the scales of FP8 blocks as DeepGEMM's kernels read them, not as a checkpoint has them.

Engines requantize what they have loaded for these kernels (SGLang 0.5.23 fp8_utils.py,
requant_weight_ue8m0; vLLM 0.33.0 fp8_utils.py, deepgemm_post_process_fp8_weight_block): scales
become powers of two, in float32 on Hopper, and packed on Blackwell. What is declared so is written
so by an update, which quantizes once where loading quantizes twice.
"""

import math
from collections.abc import Container, Mapping
from dataclasses import replace

from tranship.runtime.bind import location
from tranship.runtime.frameworks.tracing.declare import piece_strides
from tranship.runtime.frameworks.tracing.request import DeepGemm
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.dtypes import DType
from tranship.schema.layouts import PACKED_BLOCK, PACKED_SCALES, ROW_MAJOR, declared_scales
from tranship.schema.manifest import Side
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    FillRecord,
    Ints,
    PieceRecord,
    contiguous_strides,
)

POWER_OF_TWO: DeepGemm = "power_of_two"
PACKED: DeepGemm = "packed"


def as_deepgemm_reads(
    declaration: Declaration, form: DeepGemm, requantized: Container[str]
) -> Declaration:
    """Declare the scales of a rank's FP8 blocks as powers of two, and as packed where they are.

    Args:
        declaration: Ranks, with float32 scales as the checkpoint has them.
        form: How the kernels read scales.
        requantized: Names of codes whose scales are packed, if the form is `packed`. Powers of two
            are what any kernel for float32 scales reads, so that form is of all codes.

    Raises:
        DiagnosticError: TS859, the rank holds no such codes.
    """
    codes = {
        (record.rank, record.encoding.scale): record
        for record in declaration.buffers
        if _has_blocks(record) and (form == POWER_OF_TWO or record.name in requantized)
    }
    if not codes:
        message = "no weights in FP8 blocks of 128 x 128 that DeepGEMM would read"
        advice = "let the engine run FP8 blocks by DeepGEMM, or leave --deepgemm out"
        where = location(Side.RECEIVER, declaration.ranks[0])
        raise DiagnosticError([Diagnostic("TS859", message, where, help=advice)])
    buffers = [_restated(record, codes, form) for record in declaration.buffers]
    return replace(declaration, buffers=tuple(sorted(buffers)))


def _has_blocks(record: BufferRecord) -> bool:
    encoding = record.encoding
    blocks = encoding.kind == "scaled" and encoding.block == (PACKED_BLOCK, PACKED_BLOCK)
    return blocks and record.layout == ROW_MAJOR


def _restated(
    record: BufferRecord, codes: Mapping[tuple[int, str], BufferRecord], form: DeepGemm
) -> BufferRecord:
    rank = record.rank
    if (rank, record.encoding.scale) in codes:
        return replace(record, encoding=replace(record.encoding, scale_values=POWER_OF_TWO))
    if form == PACKED and (rank, record.name) in codes:
        return _packed(record, codes[rank, record.name].shape)
    if form == PACKED and (rank, record.role.of) in codes:
        # A second name of scales: what lies there is told under the first.
        return replace(_packed(record, codes[rank, record.role.of].shape), fills=())
    return record


def _packed(record: BufferRecord, codes: Ints) -> BufferRecord:
    """Declare float32 scales as they are before they are packed: bytes, in whole words."""
    assert record.strides == contiguous_strides(record.shape), "scales without gaps"
    *outer, rows, columns = record.shape
    width = declared_scales(codes)[-1]
    shape = (*outer, rows, width)
    strides = contiguous_strides(shape)

    def moved(offset: int) -> int:
        """Return where an element comes to be in wider rows, or how far a step goes then."""
        row, column = divmod(offset, max(columns, 1))
        return row * width + column

    def moved_piece(piece: PieceRecord) -> PieceRecord:
        steps = piece_strides(tuple(map(moved, piece.strides)), piece.extent, strides)
        return replace(piece, offset=moved(piece.offset), strides=steps)

    fills = [
        replace(fill, offset=moved(fill.offset), strides=tuple(map(moved, fill.strides)))
        for fill in record.fills
    ]
    sizes = (*outer, rows, width - columns)
    if math.prod(sizes):
        fills.append(FillRecord(columns, sizes, strides, 0))
    return replace(
        record,
        dtype=DType.F8E8M0FNU,
        layout=PACKED_SCALES,
        shape=shape,
        strides=strides,
        pieces=tuple(sorted(map(moved_piece, record.pieces))),
        fills=tuple(sorted(fills)),
    )

"""Carry out what a trace or a declaration says, on real tensors and with torch's views alone."""

import torch

from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.frameworks.tracing.boxes import Box
from tranship.runtime.frameworks.tracing.scales import SCALE_SUFFIX
from tranship.schema.manifest import Part
from tranship.schema.records import BufferRecord, Ints, PieceRecord

UNWRITTEN = 0xFF
"""Every byte of every parameter before loading: a NaN in each floating-point type."""


def region(buffer: torch.Tensor, offset: int, sizes: Ints, strides: Ints) -> torch.Tensor:
    """View elements `offset + sum(k * strides)` of a buffer, counted from its first."""
    return buffer.as_strided(sizes, strides, buffer.storage_offset() + offset)


def put(buffer: torch.Tensor, source: torch.Tensor, piece: Box | PieceRecord) -> None:
    """Copy a box of a tensor to its place in a buffer."""
    kept = zip(piece.start, piece.extent, piece.step, strict=True)
    box = source[tuple(slice(start, start + extent * step, step) for start, extent, step in kept)]
    region(buffer, piece.offset, piece.extent, piece.strides).copy_(box)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def replayed(buffer: BufferRecord, checkpoint: dict[str, torch.Tensor]) -> torch.Tensor:
    """Write a declared buffer from a checkpoint."""
    memory = torch.empty_strided(buffer.shape, buffer.strides, dtype=torch_dtype(buffer.dtype))
    bits(memory).fill_(UNWRITTEN)
    for piece in buffer.pieces:
        suffix = SCALE_SUFFIX if piece.part is Part.SCALE else ""
        put(memory, checkpoint[piece.tensor + suffix], piece)
    for fill in buffer.fills:
        region(memory, fill.offset, fill.sizes, fill.strides).fill_(fill.value)
    return memory

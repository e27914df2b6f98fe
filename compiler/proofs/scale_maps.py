"""Part of proof 1: the scales of every half lie where the manifest's scale pieces say.

A half's scale map claims a box of blocks, and an address for each. Every declared scale piece of
the same buffer and tensor is cut with that box, in block numbers of the half's own grid. Two affine
maps agree on a box if they agree at its first corner and in every stride. The blocks on which a
piece agrees are counted; they must be all that the map claims, and the map must claim every block
that the half's values touch.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tranship.compiler.proofs.declared import Declared
from tranship.compiler.proofs.lookup import padded, pairs
from tranship.compiler.proofs.reading import End
from tranship.compiler.proofs.report import and_more, box_text, refuse
from tranship.schema.boxes import resolve_block
from tranship.schema.diagnostics import Diagnostic, Location
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Side
from tranship.schema.plan import Half
from tranship.schema.records import Ints

Mask = NDArray[np.bool_]


def check_scales(
    side: Side, half: Half, shape: Ints, end: End, known: Declared, place: Location
) -> Iterator[Diagnostic]:
    """Yield TS604 and TS605 for one half."""
    if half.scale is None or half.block is None:
        return
    problem = next(_wrong_buffers(side, half, end, known, place), None)
    if problem:
        yield problem
        return
    agreed, touched = _mapped(end, known, resolve_block(half.block, shape))
    wrong = np.flatnonzero(~agreed | ~touched)
    if len(wrong):
        row = int(wrong[0])
        scale, rank = end.instances.scale, int(end.instances.rank[row])
        assert scale is not None
        lack = "hold these blocks there" if touched[row] else "claim every block of its piece"
        yield refuse(
            "TS605",
            f"'{end.scale_names[row]}' on {side} rank {rank} does not {lack}"
            + and_more(len(wrong), "instance"),
            place,
            expected="every block of the piece, where the declared scale pieces have it",
            found=f"blocks {box_text(scale.start[row].tolist(), scale.extent[row].tolist())} "
            f"at offset {int(scale.offset[row])}, strides {scale.strides[row].tolist()}",
        )


def _wrong_buffers(
    side: Side, half: Half, end: End, known: Declared, place: Location
) -> Iterator[Diagnostic]:
    """What is wrong with the scale buffers that the half names."""
    assert half.scale is not None
    for row, name in enumerate(end.scale_names):
        buffer, scale = known.buffers[int(end.buffer[row])], int(end.scale_buffer[row])
        where = f"{side} rank {buffer.rank}"
        if name != buffer.encoding.scale:
            message = f"the scales of '{buffer.name}' on {where} are elsewhere"
            yield refuse("TS605", message, place, buffer.encoding.scale, name)
        elif scale < 0 or known.buffers[scale].encoding.of != buffer.name:
            yield refuse("TS605", f"'{name}' on {where} holds no scales of '{buffer.name}'", place)
        elif known.buffers[scale].dtype != half.scale.dtype:
            message = f"the scale dtype of '{buffer.name}' is not what the {side} declares"
            yield refuse("TS604", message, place, known.buffers[scale].dtype, half.scale.dtype)


def _mapped(end: End, known: Declared, own_block: Ints) -> tuple[Mask, Mask]:
    """For every instance: are its claimed blocks declared, and are they all of its blocks."""
    values, scale = known.values, end.instances.scale
    assert scale is not None
    dims = values.start.shape[1]
    block = np.array([*own_block, *(1,) * (dims - len(own_block))], dtype=np.int64)
    start, extent = padded(scale.start, dims, 0), padded(scale.extent, dims, 1)
    origin, piece = values.origin[end.piece], end.piece
    last = values.start[piece] + (values.extent[piece] - 1) * values.step[piece]
    touched = (values.start[piece] - origin) // block >= start
    touched &= (last - origin) // block < start + extent
    agreed = _agreeing(end, known, start, extent, origin, block)
    claimed = np.prod(np.maximum(extent, 0), axis=1, dtype=np.int64)
    declared = np.where(claimed > 0, agreed == claimed, np.False_)
    return declared, np.logical_and.reduce(touched, axis=1)


def _agreeing(
    end: End, known: Declared, start: IntArray, extent: IntArray, origin: IntArray, block: IntArray
) -> IntArray:
    """How many blocks of each instance lie where it claims, `[n]`."""
    scales, scale = known.scales, end.instances.scale
    assert scale is not None
    strides = padded(scale.strides, start.shape[1], 0)
    tensors = len(known.tensors)
    row, piece = pairs(
        end.scale_buffer * tensors + end.tensor, scales.buffer * tensors + scales.tensor
    )
    shift = scales.origin[piece] - origin[row]
    first = scales.start[piece] + shift // block
    low = np.maximum(first, start[row])
    size = np.minimum(first + scales.extent[piece], start[row] + extent[row]) - low
    declared = scales.offset[piece] + ((low - first) * scales.strides[piece]).sum(axis=1)
    claimed = scale.offset[row] + ((low - start[row]) * strides[row]).sum(axis=1)
    same = (size == 1) | (scales.strides[piece] == strides[row])
    same &= (size > 0) & (shift % block == 0) & (scales.step[piece] == 1)
    agree = np.flatnonzero((declared == claimed) & same.all(axis=1))
    count = np.zeros(len(end.buffer), dtype=np.int64)
    np.add.at(count, row[agree], np.prod(size[agree], axis=1))
    return count

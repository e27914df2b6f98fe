"""Packed scales as launches: the engine's memory written from what was received, and compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from tranship.runtime.kernels.graphs import as_one
from tranship.runtime.kernels.launch import Launch, Shared, bind_digests, bind_tables
from tranship.runtime.kernels.lower_copies import lower_boxes
from tranship.runtime.kernels.lower_digests import lower_digests
from tranship.runtime.kernels.totals import Totals
from tranship.runtime.packed import PackedScales
from tranship.schema.expression import IntArray
from tranship.schema.layouts import PACKED_BLOCK
from tranship.schema.wire import align

_WORD = 4


@dataclass(frozen=True, slots=True)
class PackedKernels:
    """What packs the scales of a receiver; every launch goes to the current stream.

    `write` writes all words; `check` digests them where they lie, and the words that they repeat;
    `step` is both as one call. The digests come to be in `totals`, first those of the engine's
    memory.
    """

    names: tuple[str, ...]
    write: tuple[Launch, ...]
    check: tuple[Launch, ...]
    step: Launch
    totals: Totals

    def run(self) -> None:
        """Write everything, and digest it."""
        self.step()

    def differing(self) -> list[str]:
        """Name the buffers that do not hold what was received, once all launches are done."""
        held, wanted = self.totals.host.reshape(2, -1)
        return [self.names[number] for number in np.flatnonzero(held != wanted).tolist()]


def bind_packed(packed: Sequence[PackedScales], device: torch.device) -> PackedKernels:
    """Bind the scales to be packed on `device`, where all of them lie."""
    names = tuple(each.name for each in packed)
    if not packed:
        cpu = torch.device("cpu")
        return PackedKernels(names, (), (), as_one((), cpu), Totals.of(0, cpu))
    totals = Totals.of(2 * len(packed), device)
    boxes = _boxes(packed)
    moved = boxes.source, boxes.target, boxes.sizes, boxes.source_strides, boxes.target_strides
    item = np.full(len(boxes.number), _WORD)
    shared = Shared(totals.lanes, totals.lanes, totals.lanes)
    offset = align(boxes.before * _WORD)
    held = boxes.target, boxes.sizes, boxes.target_strides, item, boxes.number, offset
    wanted = boxes.source, boxes.sizes, boxes.source_strides, item
    digests = [
        *lower_digests(*held),
        *lower_digests(*wanted, boxes.number + len(packed), offset),
    ]
    write = tuple(bind_tables(lower_boxes(*moved, item), shared))
    check = totals.clear, *bind_digests(digests, totals.lanes), totals.add_up
    return PackedKernels(names, write, check, as_one((*write, *check), device), totals)


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Boxes of words, rows of codes innermost: those of whole blocks, and of the rows that remain.

    `source` and `target` `[n]` are the addresses of each box's first word where it was received,
    and in the engine's memory; strides are in words, `[n, D]`. `number` `[n]` is the buffer, and
    `before` `[n]` counts its words in the boxes before.
    """

    number: IntArray
    before: IntArray
    sizes: IntArray
    source: IntArray
    target: IntArray
    source_strides: IntArray
    target_strides: IntArray


def _boxes(packed: Sequence[PackedScales]) -> _Boxes:
    dims = max(each.engine.ndim for each in packed) + 1
    rows = [row for number, each in enumerate(packed) for row in _rows(number, each, dims)]
    table = np.array(rows, np.int64).reshape(len(rows), 4 + 3 * dims)
    sizes, source, target = np.split(table[:, 4:], 3, axis=1)
    return _Boxes(table[:, 0], table[:, 1], sizes, table[:, 2], table[:, 3], source, target)


def _rows(number: int, each: PackedScales, dims: int) -> Iterator[list[int]]:
    """Yield the fields of one buffer's boxes that have words, side by side."""
    *outer, rows, words = each.engine.shape
    *outer_steps, row, column = each.engine.stride()
    received, missing = each.words, dims - each.engine.ndim - 1
    zeros = [0] * missing
    whole, rest = divmod(rows, PACKED_BLOCK)
    before = 0
    for first, blocks, repeats in ((0, whole, PACKED_BLOCK), (whole, 1, rest)):
        sizes = [*outer, blocks, words, repeats]
        source = received.data_ptr() + _WORD * first * words
        target = each.engine.data_ptr() + _WORD * first * PACKED_BLOCK * row
        if prod(sizes):
            fields = [number, before, source, target, *[1] * missing, *sizes]
            fields += [*zeros, *received.stride(), 0]
            fields += [*zeros, *outer_steps, PACKED_BLOCK * row, column, row]
            yield fields
        before += prod(sizes)

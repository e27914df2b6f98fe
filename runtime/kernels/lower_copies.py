"""COPY and FILL jobs as tables: contiguous chunks and rows where they are, else single elements."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tranship.runtime.jobs import DTYPE_NUMBER, ITEM_SIZES, Fragments, Jobs, places, row_major
from tranship.runtime.kernels.tables import (
    Addresses,
    Mask,
    Strided,
    Table,
    Wire,
    classes,
    common_unit,
    merge_dims,
    unroll,
)
from tranship.schema.dtypes import DType
from tranship.schema.expression import IntArray

CHUNK = 65536
"""Bytes of a chunk."""

STEP = 16384
"""Bytes that a program moves at a time."""

_ROW_SHAPES = ((1024, 16, 1024), (256, 64, 256), (48, 128, 128), (0, 256, 32))
"""Boxes for rows of at least so many bytes: rows, and bytes of each."""

_WARPS = {"num_warps": 8}


@dataclass(frozen=True, slots=True)
class Lowered:
    """Tables, and which jobs' digests they take, `[jobs]` bool."""

    tables: tuple[Table, ...]
    digested: Mask


def lower_copies(
    jobs: Jobs, fragments: Fragments, wire: Wire, at: Addresses, *, taken: bool
) -> Lowered:
    """Return the launches of copies of one fragment each.

    Args:
        jobs: COPY jobs.
        fragments: The table that they count from.
        wire: Where their values lie in messages.
        at: The addresses of their buffers.
        taken: Whether to digest what is read, besides what is kept.
    """
    read = own_fragments(jobs, fragments)
    boxes = merge_dims(
        jobs["extent"], read["strides"], jobs["target_strides"], row_major(jobs["extent"])
    )
    source = at(read["source"], read["offset"])
    target = at(jobs["target"], jobs["target_offset"])
    return _lower(_Moved(ITEM_SIZES[read["dtype"]], source, target, wire, boxes), taken=taken)


def lower_boxes(
    source: IntArray,
    target: IntArray,
    sizes: IntArray,
    source_strides: IntArray,
    target_strides: IntArray,
    item: IntArray,
) -> tuple[Table, ...]:
    """Return the launches that copy boxes `[n, D]` of elements of `item` bytes."""
    boxes = merge_dims(sizes, source_strides, target_strides, row_major(sizes))
    moved = _Moved(item, source, target, Wire.nowhere(len(sizes)), boxes)
    return _lower(moved, taken=False).tables


def _lower(moved: "_Moved", *, taken: bool) -> Lowered:
    boxes = moved.boxes
    inner = np.all([step[:, 0] == 1 for step in boxes.strides[:2]], axis=0) | (
        boxes.sizes[:, 0] == 1
    )
    flat = inner & np.all(boxes.sizes[:, 1:] == 1, axis=1)
    tables: list[Table] = []
    digested = np.zeros(len(flat), bool)
    for lower, chosen in ((_chunks, flat), (_rows, inner & ~flat)):
        index = np.flatnonzero(chosen)
        found, sure = lower(moved.take(index), taken=taken)
        tables += found
        digested[index] = sure
    tables += _elements(moved.take(np.flatnonzero(~inner)))
    return Lowered(tuple(tables), digested)


def lower_fills(fills: Jobs, at: Addresses) -> tuple[Table, ...]:
    """Return the launches of FILL jobs."""
    boxes = merge_dims(fills["extent"], fills["target_strides"])
    bits = _ONE[fills["target_dtype"]] * fills["value"]
    target = at(fills["target"], fills["target_offset"])
    filled = _Moved(
        ITEM_SIZES[fills["target_dtype"]],
        bits,
        target,
        Wire.nowhere(len(fills)),
        Strided(boxes.sizes, (np.zeros_like(boxes.strides[0]), boxes.strides[0])),
    )
    return tuple(_elements(filled, constant=True))


def _one_bits() -> IntArray:
    """Return the bits of 1 in every dtype, by its number."""
    known = {
        DType.F64: 0x3FF0000000000000,
        DType.F32: 0x3F800000,
        DType.BF16: 0x3F80,
        DType.F16: 0x3C00,
        DType.F8E4M3FN: 0x38,
        DType.F8E5M2: 0x3C,
        DType.F8E8M0FNU: 0x7F,
    }
    bits = np.ones(len(DTYPE_NUMBER), np.int64)
    for dtype, number in DTYPE_NUMBER.items():
        bits[number] = known.get(dtype, 1)
    return bits


_ONE = _one_bits()


def own_fragments(jobs: Jobs, fragments: Fragments) -> Fragments:
    """Return the one fragment of every job.

    Raises:
        ValueError: a job has several, or writes a part of its box only.
    """
    whole = np.all(jobs["inner_extent"] == jobs["extent"]) and np.all(jobs["inner_start"] == 0)
    if not whole or np.any(jobs["fragment_count"] != 1):
        raise ValueError("jobs that go element by element read one fragment, and write all of it")
    return fragments[jobs["fragment_first"]]


@dataclass(frozen=True, slots=True)
class _Moved:
    """Copies as boxes, `[n]`; strides of `boxes` are of source, target and (once) the message."""

    item: IntArray
    source: IntArray
    target: IntArray
    wire: Wire
    boxes: Strided

    def take(self, index: IntArray) -> "_Moved":
        strides = tuple(step[index] for step in self.boxes.strides)
        return _Moved(
            self.item[index],
            self.source[index],
            self.target[index],
            self.wire.take(index),
            Strided(self.boxes.sizes[index], strides),
        )


Found = tuple[list[Table], Mask]


def _chunks(moved: _Moved, *, taken: bool) -> Found:
    size = moved.boxes.sizes[:, 0] * moved.item
    unit = common_unit(moved.source, moved.target, size)
    sure = (unit >= 8) & (moved.wire.entry >= 0) & (moved.wire.offset % 8 == 0)
    tables: list[Table] = []
    for (width, digests), index in classes(unit, sure) if len(size) else ():
        job, place = places(-(-size[index] // CHUNK)[:, np.newaxis])
        job, skipped = index[job], place[:, 0] * CHUNK
        columns = [
            moved.source[job] + skipped,
            moved.target[job] + skipped,
            np.minimum(size[job] - skipped, CHUNK) // width,
            (moved.wire.offset[job] + skipped) // 8 + 1,
            moved.wire.entry[job],
        ]
        options = {"SIZE": CHUNK, "STEP": STEP if width >= 8 else STEP // 4, "UNIT": width}
        options |= {"TAKEN": bool(digests and taken), "KEPT": bool(digests)}
        tables.append(Table("copy_chunks", _padded(columns, 8), options | _WARPS))
    return tables, sure


def _rows(moved: _Moved, *, taken: bool) -> Found:
    item, boxes = moved.item, moved.boxes
    size = boxes.sizes[:, 0] * item
    box, place = unroll(boxes, 2)
    outer = [np.sum(place * step[box], axis=1) * item[box] for step in boxes.strides]
    steps = [step[:, 1] * item for step in boxes.strides]
    source, target = moved.source[box] + outer[0], moved.target[box] + outer[1]
    where = moved.wire.offset[box] + outer[2]
    unit = common_unit(source, target, size[box], steps[0][box], steps[1][box])
    fits = (unit >= 8) & (where % 8 == 0) & (steps[2][box] % 8 == 0)
    # A job's digest is taken by all of its boxes or by none.
    sure = moved.wire.entry >= 0
    np.logical_and.at(sure, box, fits)
    wide = np.searchsorted([-shape[0] for shape in _ROW_SHAPES], -size[box], side="left")
    tables: list[Table] = []
    for (width, digests, shape), index in classes(unit, sure[box], wide) if len(box) else ():
        _, rows, row_bytes = _ROW_SHAPES[shape]
        own = box[index]
        counts = np.stack([-(-boxes.sizes[own, 1] // rows), -(-size[own] // row_bytes)], axis=1)
        part, cell = places(counts)
        own, row, byte = own[part], cell[:, 0] * rows, cell[:, 1] * row_bytes
        columns = [
            source[index][part] + row * steps[0][own] + byte,
            target[index][part] + row * steps[1][own] + byte,
            steps[0][own] // width,
            steps[1][own] // width,
            np.minimum(boxes.sizes[own, 1] - row, rows),
            np.minimum(size[own] - byte, row_bytes) // width,
            (where[index][part] + row * steps[2][own] + byte) // 8 + 1,
            steps[2][own] // 8,
            moved.wire.entry[own],
        ]
        options = {"ROWS": rows, "BYTES": row_bytes, "UNIT": width}
        options |= {"TAKEN": bool(digests and taken), "KEPT": bool(digests)}
        tables.append(Table("copy_rows", _padded(columns, 9), options | _WARPS))
    return tables, sure


def _elements(moved: _Moved, *, constant: bool = False) -> Iterator[Table]:
    """Yield tables of strided boxes, cut into tiles of 64 x 64 or, of one row, 1 x 4096."""
    item, boxes = moved.item, moved.boxes
    single = boxes.sizes[:, 1] == 1
    for (width, flat), index in classes(item, single) if len(item) else ():
        rows, columns = (1, 4096) if flat else (64, 64)
        counts = boxes.sizes[index].copy()
        counts[:, 0], counts[:, 1] = -(-counts[:, 0] // columns), -(-counts[:, 1] // rows)
        part, place = places(counts)
        own = index[part]
        first = place.copy()
        first[:, 0] *= columns
        first[:, 1] *= rows
        offsets = [np.sum(first * step[own], axis=1) * width for step in boxes.strides[:2]]
        table = [
            moved.source[own] + (0 if constant else offsets[0]),
            moved.target[own] + offsets[1],
            boxes.strides[0][own, 1],
            boxes.strides[0][own, 0],
            boxes.strides[1][own, 1],
            boxes.strides[1][own, 0],
            np.minimum(boxes.sizes[own, 1] - first[:, 1], rows),
            np.minimum(boxes.sizes[own, 0] - first[:, 0], columns),
        ]
        options = {"ROWS": rows, "COLUMNS": columns, "ITEM": width, "CONSTANT": constant}
        yield Table("copy_elements", _padded(table, 8), options | _WARPS)


def _padded(columns: list[IntArray], width: int) -> IntArray:
    table = np.zeros((len(columns[0]), width), np.int64)
    for number, column in enumerate(columns):
        table[:, number] = column
    return table

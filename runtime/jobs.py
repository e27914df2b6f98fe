"""The tables that a rank replays: jobs, and the fragments that they read.

Both are numpy structured arrays in which every field is int64, so that a table viewed as int64 is
the matrix `[rows, columns]` that a kernel reads. `D` is the same in all tables of a program: the
most dims of any tensor of the plan, at least 2. Tensors of fewer dims have leading dims of size 1.

A job computes one box, its *compute box*, and writes all of it or a part. Its fields:

    op, edge              a `JobOp`; the number of the plan's edge (or fill) that asks for the job
    formula               position in `FORMULA_NAMES`, or -1
    value                 what a fill writes
    target, target_dtype  buffer number, `SLOT` or `NOWHERE`; position in `DTYPES`
    target_offset         byte at which the first written element lies
    target_strides [D]    in elements
    extent [D]            size of the compute box
    inner_start [D], inner_extent [D]
                          the box within the compute box that is written
    block [D], phase [D]  the grid of a quantize or amax job: block sizes in elements, and how many
                          elements of the first block come before the compute box; else 1 and 0
    scale_target, scale_dtype, scale_offset, scale_strides [D]
                          where the scales go (of an amax job: the amaxes), as for the values
    scale_first [D], scale_counts [D]
                          which are written, in blocks counted from the compute box's first one
    fragment_first, fragment_count
                          rows of the fragment table whose boxes make up the compute box
    amax_first, amax_count
                          rows that hold parts of the amaxes. If there are any, the amax of a block
                          is their maximum (NaN if one is NaN), whatever the compute box holds

A fragment is a box to read. Its fields:

    source, dtype, offset, strides [D]
                          as for a target; `offset` is that of its first element
    start [D], extent [D] the box, in the compute box; of amaxes in blocks from the first one
    scale, scale_dtype, scale_offset, scale_strides [D]
                          where the scales of codes lie, else `NOWHERE`; `scale_offset` is that of
                          the first element's scale
    scale_block [D], scale_phase [D]
                          element `k` has scale `(k + scale_phase) // scale_block` in every dim
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tranship.schema.dtypes import ITEM_SIZE, DType
from tranship.schema.expression import IntArray
from tranship.schema.formulas import FORMULAS

Table: TypeAlias = NDArray[np.void]
Jobs: TypeAlias = Table
Fragments: TypeAlias = Table

SLOT = -1
"""Stands for the round's staging slot where a table asks for a buffer number."""

NOWHERE = -2
"""Stands for no memory at all where a table asks for a buffer number."""

DTYPES = tuple(DType)
"""The dtypes by the numbers that tables hold."""

DTYPE_NUMBER = {dtype: number for number, dtype in enumerate(DTYPES)}
"""The number of every dtype."""

ITEM_SIZES = np.array([ITEM_SIZE[dtype] for dtype in DTYPES], dtype=np.int64)
"""Bytes per element by the numbers that tables hold."""

FORMULA_NAMES = tuple(FORMULAS)
"""The formulas by the numbers that tables hold."""


class JobOp(IntEnum):
    """What a job does.

    COPY moves bytes. CAST converts every element. DEQUANTIZE writes `code * scale`, computed in
    float32 and rounded once. QUANTIZE writes codes and scales. AMAX writes the largest magnitude
    of every block, as float32. FILL writes a constant and reads nothing.
    """

    COPY = 0
    CAST = 1
    DEQUANTIZE = 2
    QUANTIZE = 3
    AMAX = 4
    FILL = 5


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs of any rounds with the fragments that they count from; `round` `[jobs]`."""

    round: IntArray
    jobs: Jobs
    fragments: Fragments


def fields(scalars: str, vectors: str, length: int) -> np.dtype[np.void]:
    """Return the dtype of a table: int64 `scalars`, then int64 `vectors` of `length`."""
    columns = [(name, np.int64, ()) for name in scalars.split()]
    return np.dtype(columns + [(name, np.int64, (length,)) for name in vectors.split()])


def blank_jobs(rows: int, dims: int) -> Jobs:
    """Return `rows` jobs of `dims` dims that compute one element, read and write nothing."""
    scalars = (
        "op edge formula value target target_dtype target_offset scale_target scale_dtype"
        " scale_offset fragment_first fragment_count amax_first amax_count"
    )
    vectors = (
        "target_strides extent inner_start inner_extent block phase"
        " scale_strides scale_first scale_counts"
    )
    jobs = np.zeros(rows, fields(scalars, vectors, dims))
    jobs["formula"] = -1
    jobs["target"] = jobs["scale_target"] = NOWHERE
    jobs["extent"] = jobs["inner_extent"] = jobs["block"] = 1
    return jobs


def blank_fragments(rows: int, dims: int) -> Fragments:
    """Return `rows` fragments of one element without scales."""
    scalars = "source dtype offset scale scale_dtype scale_offset"
    vectors = "strides start extent scale_strides scale_block scale_phase"
    fragments = np.zeros(rows, fields(scalars, vectors, dims))
    fragments["scale"] = NOWHERE
    fragments["extent"] = fragments["scale_block"] = 1
    return fragments


def whole_jobs(op: JobOp, edge: int, extent: IntArray, dims: int) -> Jobs:
    """Return a job per row of `extent` `[n, d]` that computes and writes one fragment."""
    jobs = blank_jobs(len(extent), dims)
    jobs["op"], jobs["edge"] = op, edge
    jobs["extent"] = jobs["inner_extent"] = pad_dims(extent, dims, 1)
    jobs["fragment_first"] = np.arange(len(extent))
    jobs["fragment_count"] = 1
    return jobs


def wire_fragments(dtype: DType, position: IntArray, extent: IntArray, dims: int) -> Fragments:
    """Return fragments that read boxes of `extent` `[n, d]` at byte `position` of the slot."""
    fragments = blank_fragments(len(extent), dims)
    fragments["source"], fragments["dtype"] = SLOT, DTYPE_NUMBER[dtype]
    fragments["offset"] = position
    fragments["strides"] = pad_dims(row_major(extent), dims, 0)
    fragments["extent"] = pad_dims(extent, dims, 1)
    return fragments


def pad_dims(columns: IntArray, dims: int, filler: int) -> IntArray:
    """Put columns of `filler` before `columns` `[n, d]`, up to `[n, dims]`."""
    padded = np.full((len(columns), dims), filler, dtype=np.int64)
    padded[:, dims - columns.shape[1] :] = columns
    return padded


def row_major(extent: IntArray) -> IntArray:
    """Return the strides of contiguous boxes of `extent` `[n, d]`, in elements."""
    strides = np.ones_like(extent)
    strides[:, :-1] = np.cumprod(np.maximum(extent, 1)[:, :0:-1], axis=1)[:, ::-1]
    return strides


def spans(first: IntArray, count: IntArray) -> IntArray:
    """Concatenate the ranges of `count` integers from `first` on."""
    rows = np.repeat(np.arange(len(first)), count)
    before = np.cumsum(count) - count
    return np.arange(len(rows), dtype=np.int64) - before[rows] + first[rows]


def places(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return all places in grids of `counts` `[n, D]`: the grid of each, and `[total, D]`."""
    total = np.prod(counts, axis=1)
    grid = np.repeat(np.arange(len(counts)), total)
    flat = spans(np.zeros_like(total), total)[:, np.newaxis]
    return grid, flat // row_major(counts)[grid] % counts[grid]


def join_batches(batches: Sequence[Batch], dims: int) -> Batch:
    """Put batches one after another."""
    jobs = [blank_jobs(0, dims), *(batch.jobs.copy() for batch in batches)]
    moved = 0
    for part, batch in zip(jobs[1:], batches, strict=True):
        part["fragment_first"] += moved
        part["amax_first"] += moved
        moved += len(batch.fragments)
    return Batch(
        np.concatenate([np.zeros(0, np.int64), *(batch.round for batch in batches)]),
        np.concatenate(jobs),
        np.concatenate([blank_fragments(0, dims), *(batch.fragments for batch in batches)]),
    )


def without_empty(batch: Batch) -> Batch:
    """Drop the jobs whose compute box is empty."""
    return select_jobs(batch, np.flatnonzero(np.all(batch.jobs["extent"] > 0, axis=1)))


def select_jobs(batch: Batch, index: IntArray) -> Batch:
    """Return the jobs at positions `index` with the fragments that they read."""
    jobs = batch.jobs[index]
    values = spans(jobs["fragment_first"], jobs["fragment_count"])
    amaxes = spans(jobs["amax_first"], jobs["amax_count"])
    jobs["fragment_first"] = np.cumsum(jobs["fragment_count"]) - jobs["fragment_count"]
    jobs["amax_first"] = len(values) + np.cumsum(jobs["amax_count"]) - jobs["amax_count"]
    fragments = batch.fragments[np.concatenate([values, amaxes])]
    return Batch(batch.round[index], jobs, fragments)

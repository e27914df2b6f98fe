"""A round's jobs as tiles: what a kernel with one program per tile reads.

A tile is a part of a job's compute box, two-dimensional: the last two dims are cut, the others are
unrolled. Both tables of `TileTable` are like those in `jobs.py`, with pairs (of rows, of columns)
in place of vectors, and offsets that belong to the tile. A program needs one row of `tiles`, its
rows of `fragments`, and nothing else. The fields of a tile that differ from those of its job:

    job                   row of the job
    extent [2]            size of the tile
    inner_start [2], inner_extent [2]
                          the part of the tile that is written; perhaps nothing
    block [2], phase [2]  the grid as the tile sees it
    scale_first [2], scale_counts [2]
                          the blocks, from the tile's first one, whose scales the tile writes;
                          perhaps none
    amax_place            -1, or where in an array of float32 the amax of the first block is found
    amax_strides [2]      steps in that array from block to block

A tile consists of whole blocks where blocks fit in a tile. Where they do not (a scale per row, or
per tensor), and no amax edge brings what is missing, tiles have an `amax_place`. They take two
launches: the first raises the entries of the array, all 0 before, to what the tiles hold; the
second takes the amaxes from there.
"""

from dataclasses import dataclass

import numpy as np

from tranship.runtime.jobs import (
    ITEM_SIZES,
    NOWHERE,
    Fragments,
    JobOp,
    Jobs,
    Table,
    fields,
    row_major,
    spans,
)
from tranship.runtime.program import RoundProgram
from tranship.schema.expression import IntArray

TILE_SIZE = 128
"""Most rows, and most columns, of a tile."""


@dataclass(frozen=True, slots=True)
class TileTable:
    """Tiles of jobs, the fragments that they read, and how many `amax_places` they share."""

    tiles: Table
    fragments: Table
    amax_places: int


@dataclass(frozen=True, slots=True)
class _Cut:
    """Tiles in all dims: tile `i` is `start` to `stop` `[n, D]` of the compute box of job `job`.

    `block` and `phase` `[n, D]` are the grid of the job, `first` `[n, D]` the tile's first block.
    """

    job: IntArray
    start: IntArray
    stop: IntArray
    block: IntArray
    phase: IntArray

    @property
    def first(self) -> IntArray:
        return (self.start + self.phase) // self.block

    @property
    def last(self) -> IntArray:
        return (self.stop - 1 + self.phase) // self.block


def tile_records(round_program: RoundProgram, size: int = TILE_SIZE) -> TileTable:
    """Cut the jobs of a round into tiles of at most `size` rows and columns."""
    return tile_jobs(round_program.jobs, round_program.fragments, size)


def tile_jobs(jobs: Jobs, fragments: Fragments, size: int = TILE_SIZE) -> TileTable:
    """Cut jobs into tiles of at most `size` rows and columns, in the order of the jobs."""
    cut = _cut(jobs, size)
    tiles = _tiles(jobs, cut)
    places = _place_amaxes(tiles, jobs, cut, size)
    values, value_count = _overlaps(
        jobs, "fragment", fragments, cut.job, cut.start, cut.stop
    )
    amaxes, amax_count = _overlaps(jobs, "amax", fragments, cut.job, cut.first, cut.last + 1)
    tiles["fragment_count"], tiles["amax_count"] = value_count, amax_count
    tiles["fragment_first"] = np.cumsum(value_count) - value_count
    tiles["amax_first"] = len(values) + np.cumsum(amax_count) - amax_count
    return TileTable(tiles, np.concatenate([values, amaxes]), places)


def _grid(jobs: Jobs) -> tuple[IntArray, IntArray]:
    """Return block and phase `[n, D]`; a block that holds all of a dim starts and ends with it."""
    whole = jobs["phase"] + jobs["extent"] <= jobs["block"]
    return np.where(whole, jobs["extent"], jobs["block"]), np.where(whole, 0, jobs["phase"])


def _cut(jobs: Jobs, size: int) -> _Cut:
    """Cut at multiples of `size` from the start of each block or, of small blocks, of a group."""
    block, phase = _grid(jobs)
    limit = np.ones(block.shape[1], dtype=np.int64)
    limit[-2:] = size
    group = np.where(block <= limit, limit // block * block, block)
    per_group = -(-group // limit)
    first = phase // limit
    last = phase + jobs["extent"] - 1
    count = last // group * per_group + last % group // limit - first + 1
    job, place = _unroll(count)
    tile = first[job] + place
    number, part = np.divmod(tile, per_group[job])
    start = number * group[job] + part * limit
    stop = np.minimum(start + limit, (number + 1) * group[job])
    return _Cut(
        job,
        np.maximum(start - phase[job], 0),
        np.minimum(stop - phase[job], jobs["extent"][job]),
        block[job],
        phase[job],
    )


def _unroll(count: IntArray) -> tuple[IntArray, IntArray]:
    """Return all places in grids of `count` `[n, D]`: the grid's row, and `[total, D]`."""
    total = np.prod(count, axis=1)
    row = np.repeat(np.arange(len(count)), total)
    flat = spans(np.zeros_like(total), total)[:, np.newaxis]
    return row, flat // row_major(count)[row] % count[row]

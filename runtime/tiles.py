"""A round's jobs as tiles: what a kernel with one program per tile reads.

A tile is a part of a job's compute box, two-dimensional: the last two dims are cut, the others are
unrolled. Both tables of `TileTable` are like those in `jobs.py`, with pairs (of rows, of columns)
in place of vectors, and offsets that belong to the tile. A program needs one row of `tiles`, its
rows of `fragments`, and nothing else. The fields of a tile that differ from those of its job:

    job                   row of the job
    inner_first           position of the first element that is written, in the part that the job
                          writes, row-major
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
per tensor), where amax edges bring the amaxes, or where they are all that is wanted, tiles have an
`amax_place`. They take two launches: the first raises the entries of the array, all 0 before, to
what the tiles hold or, if they have `amax` fragments, to what these say; the second takes the
amaxes from there.
"""

from dataclasses import dataclass

import numpy as np

from tranship.runtime.jobs import (
    ITEM_SIZES,
    Fragments,
    JobOp,
    Jobs,
    Table,
    fields,
    places,
    row_major,
    spans,
)
from tranship.runtime.program import RoundProgram
from tranship.schema.expression import IntArray

TILE_SIZE = (128, 128)
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


def tile_records(round_program: RoundProgram, size: tuple[int, int] = TILE_SIZE) -> TileTable:
    """Cut the jobs of a round into tiles of at most `size` rows and columns."""
    return tile_jobs(round_program.jobs, round_program.fragments, size)


def tile_jobs(jobs: Jobs, fragments: Fragments, size: tuple[int, int] = TILE_SIZE) -> TileTable:
    """Cut jobs into tiles of at most `size` rows and columns, in the order of the jobs."""
    cut = _cut(jobs, size)
    tiles = _tiles(jobs, cut)
    places = _place_amaxes(tiles, jobs, cut, size)
    values, value_count = _overlaps(jobs, "fragment", fragments, cut.job, cut.start, cut.stop)
    amaxes, amax_count = _overlaps(jobs, "amax", fragments, cut.job, cut.first, cut.last + 1)
    tiles["fragment_count"], tiles["amax_count"] = value_count, amax_count
    tiles["fragment_first"] = np.cumsum(value_count) - value_count
    tiles["amax_first"] = len(values) + np.cumsum(amax_count) - amax_count
    return TileTable(tiles, np.concatenate([values, amaxes]), places)


def grid(jobs: Jobs) -> tuple[IntArray, IntArray]:
    """Return block and phase `[n, D]`; a block that holds all of a dim starts and ends with it."""
    whole = jobs["phase"] + jobs["extent"] <= jobs["block"]
    return np.where(whole, jobs["extent"], jobs["block"]), np.where(whole, 0, jobs["phase"])


def _cut(jobs: Jobs, size: tuple[int, int]) -> _Cut:
    """Cut at multiples of `size` from the start of each block or, of small blocks, of a group."""
    block, phase = grid(jobs)
    limit = np.ones(block.shape[1], dtype=np.int64)
    limit[-2:] = size
    group = np.where(block <= limit, limit // block * block, block)
    per_group = -(-group // limit)
    first = phase // limit
    last = phase + jobs["extent"] - 1
    count = last // group * per_group + last % group // limit - first + 1
    job, place = places(count)
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


def _tiles(jobs: Jobs, cut: _Cut) -> Table:
    """Return the tiles without their fragments and amaxes."""
    scalars = (
        "op edge formula value target target_dtype target_offset scale_target scale_dtype"
        " scale_offset fragment_first fragment_count amax_first amax_count job amax_place"
        " inner_first"
    )
    vectors = (
        "target_strides extent inner_start inner_extent block phase"
        " scale_strides scale_first scale_counts amax_strides"
    )
    own = jobs[cut.job]
    tiles = np.zeros(len(own), fields(scalars, vectors, 2))
    for name in ("op", "edge", "formula", "value", "target", "target_dtype"):
        tiles[name] = own[name]
    for name in ("scale_target", "scale_dtype"):
        tiles[name] = own[name]
    for name in ("target_strides", "scale_strides"):
        tiles[name] = own[name][:, -2:]
    tiles["job"] = cut.job
    tiles["extent"] = (cut.stop - cut.start)[:, -2:]
    tiles["block"] = cut.block[:, -2:]
    tiles["phase"] = ((cut.start + cut.phase) % cut.block)[:, -2:]
    _write_inner(tiles, own, cut)
    _write_scales(tiles, own, cut)
    return tiles


def _write_inner(tiles: Table, own: Jobs, cut: _Cut) -> None:
    """Set which part of each tile is written, and where."""
    begin, extent = _meet(
        cut.start, cut.stop, own["inner_start"], own["inner_start"] + own["inner_extent"]
    )
    tiles["inner_start"] = (begin - cut.start)[:, -2:]
    tiles["inner_extent"] = extent[:, -2:]
    skipped = begin - own["inner_start"]
    steps = np.sum(skipped * own["target_strides"], axis=1)
    tiles["target_offset"] = own["target_offset"] + steps * ITEM_SIZES[own["target_dtype"]]
    tiles["inner_first"] = np.sum(skipped * row_major(own["inner_extent"]), axis=1)


def _write_scales(tiles: Table, own: Jobs, cut: _Cut) -> None:
    """Set which scales each tile writes, and where."""
    # A block belongs to the tile in which it starts or, if it starts before the job, the job does.
    begun = (cut.start + cut.phase) % cut.block != 0
    first = cut.first + (begun & (cut.start > 0))
    begin, extent = _meet(
        first, cut.last + 1, own["scale_first"], own["scale_first"] + own["scale_counts"]
    )
    tiles["scale_first"] = (begin - cut.first)[:, -2:]
    tiles["scale_counts"] = extent[:, -2:]
    steps = np.sum((begin - own["scale_first"]) * own["scale_strides"], axis=1)
    tiles["scale_offset"] = own["scale_offset"] + steps * ITEM_SIZES[own["scale_dtype"]]


def _meet(
    start: IntArray, stop: IntArray, other_start: IntArray, other_stop: IntArray
) -> tuple[IntArray, IntArray]:
    """Return start and extent of what two boxes share, `[n, D]`; all extents 0 if it is nothing."""
    begin = np.maximum(start, other_start)
    extent = np.minimum(stop, other_stop) - begin
    return begin, np.where(np.all(extent > 0, axis=1, keepdims=True), extent, 0)


def _place_amaxes(tiles: Table, jobs: Jobs, cut: _Cut, size: tuple[int, int]) -> int:
    """Set where tiles that hold parts of blocks gather amaxes, and return how many there are."""
    block, phase = grid(jobs)
    limit = np.ones(block.shape[1], dtype=np.int64)
    limit[-2:] = size
    bounds = (jobs["op"] == JobOp.AMAX) | (jobs["op"] == JobOp.QUANTIZE)
    alone = (jobs["op"] == JobOp.QUANTIZE) & (jobs["amax_count"] == 0)
    gathered = bounds & ~(alone & np.all(block <= limit, axis=1))
    counts = (phase + jobs["extent"] - 1) // block + 1
    own = np.where(gathered, np.prod(counts, axis=1), 0)
    base, strides = np.cumsum(own) - own, row_major(counts)
    place = base[cut.job] + np.sum(cut.first * strides[cut.job], axis=1)
    tiles["amax_place"] = np.where(gathered[cut.job], place, -1)
    tiles["amax_strides"] = strides[cut.job, -2:]
    return int(np.sum(own))


def _overlaps(
    jobs: Jobs, kind: str, fragments: Fragments, job: IntArray, start: IntArray, stop: IntArray
) -> tuple[Table, IntArray]:
    """Cut fragments to tiles: those that each tile reads, and how many, `[tiles]`.

    `start` and `stop` `[tiles, D]` are the tiles in the unit in which the fragments count.
    """
    count = jobs[f"{kind}_count"][job]
    tile = np.repeat(np.arange(len(job)), count)
    read = fragments[spans(jobs[f"{kind}_first"][job], count)]
    begin, extent = _meet(start[tile], stop[tile], read["start"], read["start"] + read["extent"])
    kept = np.all(extent > 0, axis=1)
    tile, read, begin, extent = tile[kept], read[kept], begin[kept], extent[kept]
    pieces = _cut_fragments(read, begin - read["start"])
    pieces["start"] = (begin - start[tile])[:, -2:]
    pieces["extent"] = extent[:, -2:]
    return pieces, np.bincount(tile, minlength=len(job))


def _cut_fragments(read: Fragments, skipped: IntArray) -> Table:
    """Return what fragments read from element `skipped` `[n, D]` on, in two dims."""
    scalars = "source dtype offset scale scale_dtype scale_offset"
    vectors = "strides start extent scale_strides scale_block scale_phase"
    pieces = np.zeros(len(read), fields(scalars, vectors, 2))
    for name in ("source", "dtype", "scale", "scale_dtype"):
        pieces[name] = read[name]
    for name in ("strides", "scale_strides", "scale_block"):
        pieces[name] = read[name][:, -2:]
    steps = np.sum(skipped * read["strides"], axis=1)
    pieces["offset"] = read["offset"] + steps * ITEM_SIZES[read["dtype"]]
    block, phase = np.divmod(skipped + read["scale_phase"], read["scale_block"])
    steps = np.sum(block * read["scale_strides"], axis=1)
    pieces["scale_offset"] = read["scale_offset"] + steps * ITEM_SIZES[read["scale_dtype"]]
    pieces["scale_phase"] = phase[:, -2:]
    return pieces

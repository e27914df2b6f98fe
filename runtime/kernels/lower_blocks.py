"""QUANTIZE and AMAX jobs as tables: whole blocks for the fast kernel, tiles for what is left."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tranship.runtime.jobs import (
    DTYPES,
    FORMULA_NAMES,
    NOWHERE,
    Fragments,
    JobOp,
    Jobs,
    places,
    spans,
)
from tranship.runtime.jobs import Table as JobTable
from tranship.runtime.kernels.lower_copies import Lowered, lower_boxes
from tranship.runtime.kernels.tables import (
    Addresses,
    Mask,
    Option,
    Table,
    Wire,
    classes,
    common_unit,
)
from tranship.runtime.tiles import TILE_SIZE, TileTable, grid, tile_jobs
from tranship.schema.dtypes import DType
from tranship.schema.expression import IntArray
from tranship.schema.formulas import FORMULAS

WHOLE, BY_ROW, BY_GROUP = 0, 1, 2
"""How the cells of a tile lie; see `quantizing.py`."""

_MOST = 16384
"""Most elements of a tile."""

_LARGEST = {DType.F8E4M3FN: 448.0, DType.F8E5M2: 57344.0}
_BF16 = DTYPES.index(DType.BF16)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Launches that raise amaxes, and those that come after."""

    before: tuple[Table, ...]
    lowered: Lowered


@dataclass(frozen=True, slots=True)
class Tiled:
    """Jobs in tiles, by shape: which jobs, and their tiles; and how many amaxes they share."""

    parts: tuple[tuple["_Shape", IntArray, TileTable], ...]
    amaxes: int


def tile_blocks(jobs: Jobs, fragments: Fragments) -> Tiled:
    """Cut QUANTIZE and AMAX jobs into tiles as the kernels want them."""
    parts = tuple(
        (shape, index, tile_jobs(jobs[index], fragments, (shape.rows, shape.columns)))
        for shape, index in _shapes(jobs)
    )
    return Tiled(parts, sum(table.amax_places for _, _, table in parts))


def lower_blocks(jobs: Jobs, tiled: Tiled, wire: Wire, at: Addresses, amaxes: int) -> Blocks:
    """Return the launches of QUANTIZE and AMAX jobs.

    Args:
        jobs: The jobs.
        tiled: Their tiles.
        wire: Where their values lie in messages.
        at: The addresses of their buffers.
        amaxes: The address of `tiled.amaxes` times 4 bytes.
    """
    before: list[Table] = []
    after: list[Table] = []
    digested = np.zeros(len(jobs), bool)
    first = 0
    for shape, index, table in tiled.parts:
        tiles = _Tiles(table, shape, jobs[index], wire.take(index), at, first)
        first += table.amax_places
        before += tiles.raising()
        whole = tiles.whole_blocks()
        sure, found = tiles.fast(whole)
        after += [*found, *tiles.slow(whole), *tiles.bounds(amaxes)]
        digested[index] = sure
    return Blocks(tuple(before), Lowered(tuple(after), digested))


@dataclass(frozen=True, slots=True)
class _Shape:
    """How jobs are tiled: the largest tile, how cells lie in it, and their columns if BY_GROUP."""

    rows: int
    columns: int
    cells: int
    group: int


def _shapes(jobs: Jobs) -> Iterator[tuple[_Shape, IntArray]]:
    """Yield the jobs of each shape."""
    block, phase = grid(jobs)
    in_step = phase[:, -1] == 0
    given = (jobs["amax_count"] > 0) | (jobs["op"] == JobOp.AMAX)
    deep = np.any(block[:, :-2] > 1, axis=1)
    keys = block[:, -2], block[:, -1], in_step, given | deep
    for (rows, columns, aligned, gathered), index in classes(*keys) if len(jobs) else ():
        yield _shape(rows, columns, bool(aligned), bool(gathered)), index


def _shape(rows: int, columns: int, aligned: bool, gathered: bool) -> _Shape:
    groups = rows == 1 and 8 <= columns <= 128 and columns & (columns - 1) == 0
    if groups and aligned and not gathered:
        return _Shape(*TILE_SIZE, BY_GROUP, columns)
    if _rounded(rows) * _rounded(columns) <= _MOST:
        return _Shape(rows, columns, WHOLE, 1)
    if rows == 1:
        return _Shape(*TILE_SIZE, BY_ROW, 1)
    return _Shape(min(rows, TILE_SIZE[0]), min(columns, TILE_SIZE[1]), WHOLE, 1)


def _rounded(size: int) -> int:
    """Return the power of two that holds `size` elements, at least 1."""
    return 1 << max(size - 1, 0).bit_length()


@dataclass(frozen=True, slots=True)
class _Tiles:
    """The tiles of jobs of one shape; `first_amax` is the place of their first amax."""

    table: TileTable
    shape: _Shape
    jobs: Jobs
    wire: Wire
    at: Addresses
    first_amax: int

    def raising(self) -> Iterator[Table]:
        """Yield the launches that gather amaxes."""
        tiles = self.table.tiles
        gathered = tiles["amax_place"] >= 0
        own = np.flatnonzero(gathered & (tiles["amax_count"] == 0))
        for options, index in self._value_classes(own):
            cells = WHOLE if self.shape.cells == WHOLE else BY_ROW
            options |= {"CELLS": cells} | self._tile_options()
            yield Table("raise_amaxes", self._records(index), options, self._fragments())
        given = np.flatnonzero(gathered & (tiles["amax_count"] > 0))
        if len(given):
            options = {"ROWS": 16, "COLUMNS": 128, "num_warps": 4}
            yield Table("raise_to_parts", self._parts(tiles[given]), options)

    def fast(self, chosen: Mask) -> tuple[Mask, list[Table]]:
        """Return the launches of the chosen whole blocks, and which jobs they digest."""
        tiles, shape = self.table.tiles, self.shape
        offset = self.wire.offset[tiles["job"]] + tiles["inner_first"]
        pitch = self.jobs["inner_extent"][tiles["job"], -1]
        fits = chosen & (self.wire.offset[tiles["job"]] >= 0) & (offset % 8 == 0) & (pitch % 8 == 0)
        sure = self.jobs["op"] == JobOp.QUANTIZE
        np.logical_and.at(sure, tiles["job"], fits)
        # Several fragments of one tile are looked up; one is written into the record.
        several = tiles["fragment_count"] > 1
        keys = (
            sure[tiles["job"]],
            several,
            tiles["formula"],
            tiles["target_dtype"],
            tiles["scale_dtype"],
        )
        tables: list[Table] = []
        index = np.flatnonzero(chosen)
        for key, rows in classes(*(column[index] for column in keys)) if len(index) else ():
            digests, fragmented, *numbers = key
            own = index[rows]
            options = {
                "ROWS": shape.rows,
                "COLUMNS": shape.columns,
                "FRAGMENTED": bool(fragmented),
                "DIGEST": bool(digests),
                "num_warps": 8,
                "maxnreg": 64,
            } | _code_options(*numbers)
            records = self._block_records(own, offset, pitch)
            table = _row_fragments(self.table.fragments, self.at) if fragmented else None
            tables.append(Table("quantize_blocks", records, options, table))
        return sure, tables

    def slow(self, whole: Mask) -> Iterator[Table]:
        """Yield the launches of all tiles that are quantized and are not whole blocks."""
        tiles = self.table.tiles
        rest = np.flatnonzero((tiles["op"] == JobOp.QUANTIZE) & ~whole)
        for options, index in self._value_classes(rest):
            keys = (tiles[name][index] for name in ("formula", "target_dtype", "scale_dtype"))
            gathered = tiles["amax_place"][index] >= 0
            for (there, *numbers), rows in classes(gathered, *keys):
                chosen = options | self._tile_options() | _code_options(*numbers)
                chosen |= {"CELLS": self.shape.cells, "GROUP": self.shape.group}
                chosen |= {"GATHERED": bool(there)}
                records = self._records(index[rows])
                yield Table("quantize_tiles", records, chosen, self._fragments())

    def bounds(self, amaxes: int) -> Iterator[Table]:
        """Yield the launches that write the amaxes that AMAX jobs ask for."""
        tiles = self.table.tiles[self.table.tiles["op"] == JobOp.AMAX]
        if len(tiles):
            place = tiles["amax_place"] + np.sum(
                tiles["scale_first"] * tiles["amax_strides"], axis=1
            )
            yield from lower_boxes(
                amaxes + (place + self.first_amax) * 4,
                self.at(tiles["scale_target"], tiles["scale_offset"]),
                tiles["scale_counts"],
                tiles["amax_strides"],
                tiles["scale_strides"],
                np.full(len(tiles), 4),
            )

    def whole_blocks(self) -> Mask:
        """Which tiles the fast kernel can do."""
        tiles, shape = self.table.tiles, self.shape
        if shape.cells != WHOLE or not _is_fast(shape):
            return np.zeros(len(tiles), bool)
        size = np.array([shape.rows, shape.columns])
        good = (tiles["op"] == JobOp.QUANTIZE) & (tiles["amax_place"] < 0)
        good &= np.all(tiles["extent"] == size, axis=1) & np.all(
            tiles["inner_extent"] == size, axis=1
        )
        target = self.at(tiles["target"], tiles["target_offset"])
        good &= _in_rows(target, tiles["target_strides"], 1)
        fragments = self.table.fragments
        source = self.at(fragments["source"], fragments["offset"])
        fine = (fragments["dtype"] == _BF16) & (fragments["scale"] == NOWHERE)
        fine &= _in_rows(source, fragments["strides"], 2)
        fine &= (fragments["start"][:, 1] == 0) & (fragments["extent"][:, 1] == shape.columns)
        bad = np.concatenate([[0], np.cumsum(~fine)])
        last = tiles["fragment_first"] + tiles["fragment_count"]
        return good & (bad[last] == bad[tiles["fragment_first"]])

    def _block_records(self, index: IntArray, offset: IntArray, pitch: IntArray) -> IntArray:
        tiles = self.table.tiles[index]
        read = self.table.fragments[tiles["fragment_first"]]
        one = tiles["fragment_count"] == 1
        scaled = np.all(tiles["scale_counts"] > 0, axis=1)
        records = np.zeros((len(tiles), 8), np.int64)
        source = self.at(read["source"], read["offset"])
        records[:, 0] = np.where(one, source, tiles["fragment_first"])
        records[:, 1] = self.at(tiles["target"], tiles["target_offset"])
        scale = self.at(tiles["scale_target"], tiles["scale_offset"])
        records[:, 2] = np.where(scaled, scale, 0)
        records[:, 3] = np.where(one, read["strides"][:, 0] // 8, tiles["fragment_count"])
        records[:, 4] = tiles["target_strides"][:, 0] // 16
        records[:, 5] = offset[index] // 8 + 1
        records[:, 6] = pitch[index] // 8
        records[:, 7] = np.maximum(self.wire.entry[tiles["job"]], 0)
        return records

    def _value_classes(self, index: IntArray) -> Iterator[tuple[dict[str, Option], IntArray]]:
        """Yield what a kernel must know of the values of tiles, and the tiles."""
        tiles, fragments = self.table.tiles[index], self.table.fragments
        read = fragments[np.minimum(tiles["fragment_first"], max(len(fragments) - 1, 0))]
        scale = np.where(read["scale"] == NOWHERE, -1, read["scale_dtype"])
        for (dtype, scale_dtype), rows in classes(read["dtype"], scale) if len(index) else ():
            stored = DTYPES[scale_dtype] if scale_dtype >= 0 else None
            yield {"VALUE": DTYPES[dtype], "VALUE_SCALE": stored}, index[rows]

    def _tile_options(self) -> dict[str, Option]:
        rows, columns = _rounded(self.shape.rows), _rounded(self.shape.columns)
        return {"ROWS": rows, "COLUMNS": columns, "num_warps": 8 if rows * columns > 2048 else 4}

    def _records(self, index: IntArray) -> IntArray:
        tiles = self.table.tiles[index]
        records = np.zeros((len(tiles), 20), np.int64)
        records[:, 0] = self.at(tiles["target"], tiles["target_offset"])
        records[:, 1:3] = tiles["target_strides"]
        records[:, 3:5], records[:, 5:7] = tiles["inner_start"], tiles["inner_extent"]
        records[:, 7] = self.at(tiles["scale_target"], tiles["scale_offset"])
        records[:, 8:10], records[:, 10:12] = tiles["scale_strides"], tiles["scale_first"]
        records[:, 12:14] = tiles["scale_counts"]
        records[:, 14], records[:, 15] = tiles["fragment_first"], tiles["fragment_count"]
        records[:, 16] = tiles["amax_place"] + self.first_amax
        records[:, 17] = tiles["amax_strides"][:, 0]
        records[:, 18:20] = tiles["extent"]
        return records

    def _fragments(self) -> IntArray:
        read = self.table.fragments
        records = np.zeros((len(read), 14), np.int64)
        records[:, 0] = self.at(read["source"], read["offset"])
        records[:, 1:3], records[:, 3:5] = read["strides"], read["start"]
        records[:, 5:7] = read["extent"]
        records[:, 7] = self.at(read["scale"], read["scale_offset"])
        records[:, 8:10], records[:, 10:12] = read["scale_strides"], read["scale_block"]
        records[:, 12:14] = read["scale_phase"]
        return records

    def _parts(self, tiles: JobTable) -> IntArray:
        """Return what amax edges bring for tiles, as boxes of up to 16 x 128."""
        tile = np.repeat(np.arange(len(tiles)), tiles["amax_count"])
        read = self.table.fragments[spans(tiles["amax_first"], tiles["amax_count"])]
        counts = -(-read["extent"] // np.array([16, 128]))
        part, first = places(counts)
        read, tile, first = read[part], tile[part], first * np.array([16, 128])
        strides = tiles["amax_strides"][tile]
        records = np.zeros((len(read), 8), np.int64)
        source = self.at(read["source"], read["offset"])
        records[:, 0] = source + np.sum(first * read["strides"], axis=1) * 4
        records[:, 1:3] = read["strides"]
        place = tiles["amax_place"][tile] + self.first_amax
        records[:, 3] = place + np.sum((read["start"] + first) * strides, axis=1)
        records[:, 4:6] = strides
        records[:, 6:8] = np.minimum(read["extent"] - first, np.array([16, 128]))
        return records


def _is_fast(shape: _Shape) -> bool:
    sizes = shape.rows, shape.columns
    powers = all(size == _rounded(size) and size >= 16 for size in sizes)
    return powers and shape.rows * shape.columns >= 1024


def _in_rows(address: IntArray, strides: IntArray, size: int) -> Mask:
    """Whether tiles have contiguous rows at multiples of 16 bytes."""
    return (strides[:, 1] == 1) & (common_unit(address, strides[:, 0] * size) == 16)


def _row_fragments(fragments: JobTable, at: Addresses) -> IntArray:
    records = np.zeros((len(fragments), 4), np.int64)
    records[:, 0] = at(fragments["source"], fragments["offset"])
    records[:, 1] = fragments["strides"][:, 0] // 8
    records[:, 2], records[:, 3] = fragments["start"][:, 0], fragments["extent"][:, 0]
    return records


def _code_options(formula: int, code: int, scale: int) -> dict[str, Option]:
    name = FORMULA_NAMES[formula]
    return {
        "FORMULA": formula,
        "FLOOR": FORMULAS[name].amax_floor,
        "LARGEST": _LARGEST[DTYPES[code]],
        "CODE": DTYPES[code],
        "SCALE": DTYPES[scale],
    }

# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false, reportInvalidTypeForm=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false
# The language is Triton's, and not Python's.
"""Kernels that quantize: whole blocks fast, and tiles of any shape, strides and fragments.

All rows of a record table are int64. Addresses are in bytes.
"""

import triton
import triton.language as tl

from tranship.runtime.kernels.arithmetic import (
    factor_from_scale,
    float_scales,
    magnitude_bits,
    negated,
    scale_from_top,
    scaled_values,
    store_scales,
)
from tranship.runtime.kernels.copying import add_digest, mixed_words

WHOLE: tl.constexpr = tl.constexpr(0)
"""A tile lies in one cell."""
BY_ROW: tl.constexpr = tl.constexpr(1)
"""Every row of a tile lies in a cell of its own."""
BY_GROUP: tl.constexpr = tl.constexpr(2)
"""Every row of a tile consists of whole cells of `GROUP` columns."""

TILE_COLUMNS: tl.constexpr = tl.constexpr(20)
"""int64 per tile: target, its row and column steps, row and column of the first element written,
rows and columns written; target of the first scale written, its row and column steps, row and
column of that scale, rows and columns of scales written; first fragment, fragments, place of the
first cell's amax, step between the amaxes of rows, rows and columns of the tile."""

FRAGMENT_COLUMNS: tl.constexpr = tl.constexpr(14)
"""int64 per fragment: address, row and column steps, first row and column in the tile, rows and
columns; address of the first scale, its row and column steps, rows and columns per cell, rows and
columns of the first cell that come before the fragment. Steps are in elements."""


@triton.jit
def quantize_blocks(
    records,
    fragments,
    digests,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FRAGMENTED: tl.constexpr,
    FORMULA: tl.constexpr,
    FLOOR: tl.constexpr,
    LARGEST: tl.constexpr,
    CODE: tl.constexpr,
    SCALE: tl.constexpr,
    DIGEST: tl.constexpr,
):
    """Quantize one whole bfloat16 block a program, and digest its codes as they are kept.

    Rows are contiguous; addresses and the steps between rows are multiples of 16 bytes. Columns of
    `records`: source (or the first fragment), target of codes, of the scale, step between rows of
    the source in 16 bytes (or number of fragments), of the codes in 16 bytes, place of the first
    word, words from row to row of the message, digest. Columns of `fragments`: address, step in 16
    bytes, first row, rows; they span all columns.
    """
    record = records + tl.program_id(0).to(tl.int64) * 8
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    if FRAGMENTED:
        bits = _rows_of_fragments(fragments, tl.load(record), tl.load(record + 3), ROWS, COLUMNS)
    else:
        source = tl.multiple_of(tl.load(record).to(tl.pointer_type(tl.int16)), 16)
        bits = tl.load(source + rows * (tl.load(record + 3) * 8) + columns)
    # As int16 a magnitude takes half the registers that a float32 does.
    top = tl.max(tl.max(bits & 0x7FFF, axis=1), axis=0).to(tl.int32) << 16
    scale = scale_from_top(top, FORMULA, FLOOR, LARGEST)
    factor = factor_from_scale(scale, top, FORMULA, FLOOR, LARGEST)
    minus_x = negated(bits.to(tl.bfloat16, bitcast=True).to(tl.float32))
    codes = scaled_values(minus_x, scale, factor, FORMULA, True).to(CODE)
    address, step = tl.load(record + 1), tl.load(record + 4)
    target = tl.multiple_of(address.to(tl.pointer_type(tl.uint8)), 16)
    tl.store(target + rows * (step * 16) + columns, codes.to(tl.uint8, bitcast=True))
    store_scales(tl.load(record + 2), scale, tl.load(record + 2) != 0, SCALE)
    if DIGEST:
        tl.debug_barrier()
        words = tl.multiple_of(address.to(tl.pointer_type(tl.int64)), 16)
        columns = tl.arange(0, COLUMNS // 8)[None, :]
        found = tl.load(words + rows * (step * 2) + columns, cache_modifier=".cg")
        places = tl.load(record + 5) + rows * tl.load(record + 6) + columns
        add_digest(digests, tl.load(record + 7), mixed_words(found, places, places > 0))


@triton.jit
def _rows_of_fragments(fragments, first, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a tile whose rows lie in several places, with one load: each row has an address."""
    rows = tl.arange(0, ROWS)
    addresses = tl.zeros((ROWS,), tl.int64)
    for number in range(count):
        fragment = fragments + (first + number) * 4
        start = tl.load(fragment + 2)
        there = tl.load(fragment) + (rows - start) * (tl.load(fragment + 1) * 16)
        here = (rows >= start) & (rows < start + tl.load(fragment + 3))
        addresses = tl.where(here, there, addresses)
    columns = tl.arange(0, COLUMNS)[None, :]
    source = addresses.to(tl.pointer_type(tl.int16))[:, None] + columns
    return tl.load(tl.multiple_of(tl.max_contiguous(source, (1, COLUMNS)), (1, 16)))


@triton.jit
def _values(
    tile,
    fragments,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_SCALE: tl.constexpr,
):
    """Load a tile as float32, 0 where it has no fragment; codes times their scales."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    values = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.load(tile + 14)
    for number in range(first, first + tl.load(tile + 15)):
        fragment = fragments + number * FRAGMENT_COLUMNS
        row, column = rows - tl.load(fragment + 3), columns - tl.load(fragment + 4)
        inside = (row >= 0) & (row < tl.load(fragment + 5))
        inside &= (column >= 0) & (column < tl.load(fragment + 6))
        source = tl.load(fragment).to(tl.pointer_type(VALUE))
        source += row * tl.load(fragment + 1) + column * tl.load(fragment + 2)
        found = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        if VALUE_SCALE is not None:
            cell_row = (row + tl.load(fragment + 12)) // tl.load(fragment + 10)
            cell_column = (column + tl.load(fragment + 13)) // tl.load(fragment + 11)
            cells = tl.load(fragment + 7).to(tl.pointer_type(VALUE_SCALE))
            cells += cell_row * tl.load(fragment + 8) + cell_column * tl.load(fragment + 9)
            found *= float_scales(tl.load(cells, mask=inside, other=0), VALUE_SCALE)
        values = tl.where(inside, found, values)
    return values


@triton.jit
def raise_amaxes(
    tiles,
    fragments,
    amaxes,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_SCALE: tl.constexpr,
):
    """Raise the amaxes of cells to what a tile holds of them; see `quantize_tiles`."""
    tile = tiles + tl.program_id(0).to(tl.int64) * TILE_COLUMNS
    values = _values(tile, fragments, ROWS, COLUMNS, VALUE, VALUE_SCALE)
    by_row = tl.max(magnitude_bits(values), axis=1)
    place = amaxes + tl.load(tile + 16)
    if CELLS == BY_ROW:
        rows = tl.arange(0, ROWS)
        inside = rows < tl.load(tile + 18)
        tl.atomic_max(place + rows * tl.load(tile + 17), by_row, mask=inside, sem="relaxed")
    else:
        tl.atomic_max(place, tl.max(by_row, axis=0), sem="relaxed")


@triton.jit
def raise_to_parts(records, amaxes, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Raise amaxes to those of a box of float32.

    Columns of `records`: source, its row and column steps, place of the first amax, its row and
    column steps, rows, columns.
    """
    record = records + tl.program_id(0).to(tl.int64) * 8
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    inside = (rows < tl.load(record + 6)) & (columns < tl.load(record + 7))
    source = tl.load(record).to(tl.pointer_type(tl.float32))
    source += rows * tl.load(record + 1) + columns * tl.load(record + 2)
    bits = magnitude_bits(tl.load(source, mask=inside, other=0.0))
    place = amaxes + tl.load(record + 3)
    place += rows * tl.load(record + 4) + columns * tl.load(record + 5)
    tl.atomic_max(place, bits, mask=inside, sem="relaxed")


@triton.jit
def quantize_tiles(
    tiles,
    fragments,
    amaxes,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    GROUP: tl.constexpr,
    GATHERED: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_SCALE: tl.constexpr,
    FORMULA: tl.constexpr,
    FLOOR: tl.constexpr,
    LARGEST: tl.constexpr,
    CODE: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Quantize one tile a program: any strides, any fragments, any part of it written.

    With `GATHERED` the amaxes come from the array `amaxes`, int32 bits, which an earlier launch of
    `raise_amaxes` or `raise_to_parts` has filled.
    """
    tile = tiles + tl.program_id(0).to(tl.int64) * TILE_COLUMNS
    x = _values(tile, fragments, ROWS, COLUMNS, VALUE, VALUE_SCALE)
    CORRECTED: tl.constexpr = VALUE == tl.bfloat16
    if CELLS == BY_GROUP:
        x = tl.reshape(x, (ROWS, COLUMNS // GROUP, GROUP))
        top = tl.max(magnitude_bits(x), axis=2)
        scale = scale_from_top(top, FORMULA, FLOOR, LARGEST)
        factor = factor_from_scale(scale, top, FORMULA, FLOOR, LARGEST)
        codes = scaled_values(negated(x), scale[:, :, None], factor[:, :, None], FORMULA, CORRECTED)
        codes = tl.reshape(codes, (ROWS, COLUMNS))
        _store_cells(tile, scale, ROWS, COLUMNS // GROUP, SCALE)
    elif CELLS == BY_ROW:
        place = amaxes + tl.load(tile + 16) + tl.arange(0, ROWS) * tl.load(tile + 17)
        top = tl.load(place, mask=tl.arange(0, ROWS) < tl.load(tile + 18), other=0)[:, None]
        scale = scale_from_top(top, FORMULA, FLOOR, LARGEST)
        factor = factor_from_scale(scale, top, FORMULA, FLOOR, LARGEST)
        codes = scaled_values(negated(x), scale, factor, FORMULA, CORRECTED)
        _store_cells(tile, scale, ROWS, 1, SCALE)
    else:
        if GATHERED:
            top = tl.load(amaxes + tl.load(tile + 16))
        else:
            top = tl.max(tl.max(magnitude_bits(x), axis=1), axis=0)
        scale = scale_from_top(top, FORMULA, FLOOR, LARGEST)
        factor = factor_from_scale(scale, top, FORMULA, FLOOR, LARGEST)
        codes = scaled_values(negated(x), scale, factor, FORMULA, CORRECTED)
        wanted = (tl.load(tile + 12) > 0) & (tl.load(tile + 13) > 0)
        store_scales(tl.load(tile + 7), scale, wanted, SCALE)
    _store_codes(tile, codes.to(CODE).to(tl.uint8, bitcast=True), ROWS, COLUMNS)


@triton.jit
def _store_cells(tile, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SCALE: tl.constexpr):
    """Store the wanted part of a tile's scales."""
    row = tl.arange(0, ROWS)[:, None] - tl.load(tile + 10)
    column = tl.arange(0, COLUMNS)[None, :] - tl.load(tile + 11)
    inside = (row >= 0) & (row < tl.load(tile + 12))
    inside &= (column >= 0) & (column < tl.load(tile + 13))
    SIZE: tl.constexpr = SCALE.primitive_bitwidth // 8
    step = row * tl.load(tile + 8) + column * tl.load(tile + 9)
    store_scales(tl.load(tile + 7) + step * SIZE, scale, inside, SCALE)


@triton.jit
def _store_codes(tile, codes, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store the wanted part of a tile's codes."""
    row = tl.arange(0, ROWS)[:, None] - tl.load(tile + 3)
    column = tl.arange(0, COLUMNS)[None, :] - tl.load(tile + 4)
    inside = (row >= 0) & (row < tl.load(tile + 5))
    inside &= (column >= 0) & (column < tl.load(tile + 6))
    target = tl.load(tile).to(tl.pointer_type(tl.uint8))
    target += row * tl.load(tile + 1) + column * tl.load(tile + 2)
    tl.store(target, codes, mask=inside)


@triton.jit
def convert_tiles(
    records,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_SCALE: tl.constexpr,
    TARGET: tl.constexpr,
    ROWS_ALIGNED: tl.constexpr,
):
    """Convert elements from one dtype to another, codes times their scales; rounded once.

    Columns of `records`: source, its row and column steps, target, its row and column steps, rows,
    columns, then the scales as in a fragment's columns. With `ROWS_ALIGNED` both have contiguous
    rows that start at multiples of 16 bytes, and row steps count in 16 elements.
    """
    record = records + tl.program_id(0).to(tl.int64) * 15
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    inside = (rows < tl.load(record + 6)) & (columns < tl.load(record + 7))
    source = tl.load(record).to(tl.pointer_type(VALUE))
    target = tl.load(record + 3).to(tl.pointer_type(TARGET))
    if ROWS_ALIGNED:
        source = tl.multiple_of(source, 16) + rows * (tl.load(record + 1) * 16) + columns
        target = tl.multiple_of(target, 16) + rows * (tl.load(record + 4) * 16) + columns
    else:
        source += rows * tl.load(record + 1) + columns * tl.load(record + 2)
        target += rows * tl.load(record + 4) + columns * tl.load(record + 5)
    values = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if VALUE_SCALE is not None:
        cells = tl.load(record + 8).to(tl.pointer_type(VALUE_SCALE))
        cells += (rows + tl.load(record + 13)) // tl.load(record + 11) * tl.load(record + 9)
        cells += (columns + tl.load(record + 14)) // tl.load(record + 12) * tl.load(record + 10)
        values *= float_scales(tl.load(cells, mask=inside, other=0), VALUE_SCALE)
    tl.store(target, values.to(TARGET), mask=inside)

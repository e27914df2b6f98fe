"""Rows of integers as single numbers: how tables of keys are compared, grouped and joined."""

from collections.abc import Sequence

import numpy as np

from tranship.schema.expression import IntArray

_SMALL = 4096


def number_rows(columns: Sequence[IntArray], rows: int) -> IntArray:
    """Number the distinct rows of a table from 0 on: equal rows have equal numbers, `[rows]`."""
    code, size = np.zeros(rows, dtype=np.int64), 1
    if rows < 2 or not columns:
        return code
    for column in columns:
        low, high = int(column.min()), int(column.max())
        if size * (high - low + 1) >= 2**62:
            code, size = _compress(code)
            column, width = _compress(column)
            low, high = 0, width - 1
        code = code * (high - low + 1) + (column - low)
        size *= high - low + 1
    return number_codes(code, size)[1]


def number_codes(codes: IntArray, size: int) -> tuple[IntArray, IntArray]:
    """The distinct of some codes below `size`, ascending, and the number of each among them."""
    if size > 4 * len(codes) + _SMALL:
        distinct, number = np.unique(codes, return_inverse=True)
        return distinct, number.reshape(-1).astype(np.int64)
    # Few possible codes are counted, which is faster than sorting the rows.
    present = np.zeros(size, dtype=np.bool_)
    present[codes] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[codes]


def _compress(values: IntArray) -> tuple[IntArray, int]:
    """Replace values by their ranks; also the number of distinct values."""
    distinct, rank = np.unique(values, return_inverse=True)
    return rank.reshape(-1).astype(np.int64), len(distinct)


def join_sorted(left: IntArray, right: IntArray) -> tuple[IntArray, IntArray]:
    """All pairs (row of `left`, row of ascending `right`) with equal keys, ordered by left row."""
    low = np.searchsorted(right, left, side="left")
    count = np.searchsorted(right, left, side="right") - low
    return repeat_runs(low, count)


def spread(value: int | IntArray, rows: int) -> IntArray:
    """Repeat a value that does not depend on the row."""
    return np.full(rows, value, dtype=np.int64) if isinstance(value, int) else value


def repeat_runs(first: IntArray, count: IntArray) -> tuple[IntArray, IntArray]:
    """For every row, the positions `first` to `first + count - 1`: pairs (row, position)."""
    rows = np.repeat(np.arange(len(first), dtype=np.int64), count)
    before = np.cumsum(count) - count
    return rows, np.arange(len(rows), dtype=np.int64) - before[rows] + first[rows]

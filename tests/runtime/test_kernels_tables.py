"""The tables that kernels read: every byte of every box once, in order, at any alignment."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tranship.runtime.jobs import places, row_major
from tranship.runtime.kernels.lower_copies import lower_boxes
from tranship.runtime.kernels.lower_digests import lower_digests
from tranship.runtime.kernels.tables import (
    Strided,
    Table,
    classes,
    common_unit,
    merge_dims,
    unroll,
)
from tranship.schema.expression import IntArray

Row = list[int]


def array(rows: list[Row]) -> IntArray:
    return np.array(rows, dtype=np.int64)


@st.composite
def boxes(draw: st.DrawFn, operands: int) -> tuple[Row, list[Row]]:
    """Draw sizes and, for every operand, strides that sometimes allow dims to merge."""
    dims = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims))
    strides: list[Row] = []
    for _ in range(operands):
        steps = [0] * dims
        order = draw(st.sampled_from([list(range(dims))[::-1], draw(st.permutations(range(dims)))]))
        step = draw(st.integers(1, 2))
        for dim in order:
            steps[dim] = step
            step = step * sizes[dim] + draw(st.sampled_from([0, 0, 0, 1, 8]))
        strides.append(steps)
    return sizes, strides


def elements(sizes: Row, strides: Row) -> Row:
    """List the offsets of a box's elements, the last dim fastest."""
    return [
        sum(place * step for place, step in zip(index, strides, strict=True))
        for index in product(*(range(size) for size in sizes))
    ]


def merged(found: Strided, row: int, operand: int) -> Row:
    """List the offsets of a merged box's elements in the same order."""
    sizes, strides = found.sizes[row][::-1].tolist(), found.strides[operand][row][::-1].tolist()
    return elements(sizes, strides)


# --- dims ---------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(box=boxes(operands=2), other=boxes(operands=2))
def test_merged_dims_address_the_same_elements_in_the_same_order(
    box: tuple[Row, list[Row]], other: tuple[Row, list[Row]]
) -> None:
    dims = max(len(box[0]), len(other[0]))
    both = [
        ([1] * (dims - len(sizes)) + sizes, [[0] * (dims - len(sizes)) + row for row in strides])
        for sizes, strides in (box, other)
    ]
    columns = [array([strides[operand] for _, strides in both]) for operand in range(2)]
    found = merge_dims(array([sizes for sizes, _ in both]), *columns)
    for row, (sizes, strides) in enumerate(both):
        for operand in range(2):
            assert merged(found, row, operand) == elements(sizes, strides[operand])


@settings(max_examples=200, deadline=None)
@given(box=boxes(operands=2))
def test_no_two_neighbouring_dims_could_still_be_merged(box: tuple[Row, list[Row]]) -> None:
    sizes, strides = box
    found = merge_dims(array([sizes]), *(array([row]) for row in strides))
    used = int(np.count_nonzero(found.sizes[0] > 1))
    assert (found.sizes[0][:used] > 1).all()
    for dim in range(used - 1):
        joins = [
            int(step[0, dim + 1]) == int(found.sizes[0, dim]) * int(step[0, dim])
            for step in found.strides
        ]
        assert not all(joins)


def test_dims_of_one_element_do_not_keep_others_apart() -> None:
    found = merge_dims(array([[4, 1, 6]]), array([[6, 999, 1]]))
    assert found.sizes.tolist() == [[24, 1, 1]]
    assert found.strides[0].tolist()[0][0] == 1


@given(counts=st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=4))
def test_places_are_those_of_every_grid(counts: list[Row]) -> None:
    grid, place = places(array(counts))
    wanted = [
        (number, index)
        for number, sizes in enumerate(counts)
        for index in product(*(range(size) for size in sizes))
    ]
    found: list[Row] = place.tolist()
    assert [(a, tuple(b)) for a, b in zip(grid.tolist(), found, strict=True)] == wanted


@settings(deadline=None)
@given(box=boxes(operands=1), kept=st.integers(0, 3))
def test_unrolled_boxes_hold_every_element_once(box: tuple[Row, list[Row]], kept: int) -> None:
    sizes, strides = box
    inner_first = Strided(array([sizes[::-1]]), (array([strides[0][::-1]]),))
    _, place = unroll(inner_first, kept)
    assert (place[:, :kept] == 0).all()
    steps = inner_first.strides[0][0]
    inner = elements(sizes[::-1][:kept], steps[:kept].tolist())
    outer = np.sum(place * steps, axis=1).tolist()
    assert sorted(a + b for a in outer for b in inner) == sorted(elements(sizes, strides[0]))


@given(rows=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 999)), min_size=1, max_size=5))
def test_the_common_unit_is_the_largest_power_that_divides_all(rows: list[tuple[int, int]]) -> None:
    columns = np.array(rows, dtype=np.int64).T
    wanted = [
        max(unit for unit in (1, 2, 4, 8, 16) if all(entry % unit == 0 for entry in row))
        for row in rows
    ]
    assert common_unit(*columns).tolist() == wanted


@given(rows=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=9))
def test_classes_part_the_rows_by_their_keys(rows: list[tuple[int, bool]]) -> None:
    numbers, flags = np.array([a for a, _ in rows], np.int64), np.array([b for _, b in rows])
    found = {key: index.tolist() for key, index in classes(numbers, flags)}
    wanted: dict[tuple[int, ...], Row] = {}
    for position, (number, flag) in enumerate(rows):
        wanted.setdefault((number, int(flag)), []).append(position)
    assert found == wanted


# --- copies -------------------------------------------------------------------------------------


def moved_bytes(table: Table) -> list[tuple[int, int]]:
    """List the bytes that a table moves, as (from, to), and check that words are aligned."""
    spans: list[tuple[int, int, int]] = []
    for record in table.records.tolist():
        if table.kernel == "copy_chunks":
            unit = number(table, "UNIT")
            assert 0 < record[2] * unit <= number(table, "SIZE")
            spans.append((record[0], record[1], record[2] * unit))
        elif table.kernel == "copy_rows":
            unit = number(table, "UNIT")
            assert 0 < record[4] <= number(table, "ROWS")
            assert 0 < record[5] * unit <= number(table, "BYTES")
            for row in range(record[4]):
                steps = (row * record[2] * unit, row * record[3] * unit)
                spans.append((record[0] + steps[0], record[1] + steps[1], record[5] * unit))
        else:
            unit = number(table, "ITEM")
            assert 0 < record[6] <= number(table, "ROWS")
            assert 0 < record[7] <= number(table, "COLUMNS")
            for row, column in product(range(record[6]), range(record[7])):
                source = record[0] + (row * record[2] + column * record[3]) * unit
                target = record[1] + (row * record[4] + column * record[5]) * unit
                spans.append((source, target, unit))
        assert all(entry % unit == 0 for span in spans for entry in span)
    return [(a + byte, b + byte) for a, b, size in spans for byte in range(size)]


def number(table: Table, name: str) -> int:
    option = table.options[name]
    assert isinstance(option, int)
    return option


def wanted_bytes(sizes: Row, strides: list[Row], starts: Row, item: int) -> list[tuple[int, int]]:
    places_ = [
        [start + offset * item for offset in elements(sizes, steps)]
        for start, steps in zip(starts, strides, strict=True)
    ]
    return [(a + k, b + k) for a, b in zip(*places_, strict=True) for k in range(item)]


def lowered_bytes(
    sizes: Row, strides: list[Row], starts: Row, item: int
) -> Counter[tuple[int, int]]:
    """List what the tables of one copy move; like job tables its own has two dims or more."""
    source, target = (array([[0, *row]]) for row in strides)
    places_ = [np.array([start], np.int64) for start in starts]
    tables = lower_boxes(
        places_[0], places_[1], array([[1, *sizes]]), source, target, np.array([item])
    )
    return Counter(pair for table in tables for pair in moved_bytes(table))


@settings(max_examples=150, deadline=None)
@given(
    box=boxes(operands=2),
    item=st.sampled_from([1, 2, 4, 8]),
    starts=st.lists(st.integers(0, 20), min_size=2, max_size=2),
)
def test_copies_move_every_byte_once(box: tuple[Row, list[Row]], item: int, starts: Row) -> None:
    places_ = [4096 + item * start for start in starts]
    found = lowered_bytes(*box, places_, item)
    assert found == Counter(wanted_bytes(*box, places_, item))


LARGE: dict[str, tuple[Row, list[Row], int]] = {
    "several chunks": ([140_001], [[1], [1]], 1),
    "chunks of one size": ([2, 65_536], [[65_536, 1], [65_536, 1]], 1),
    "long rows": ([3, 2_500], [[2_504, 1], [2_500, 1]], 2),
    "many rows": ([600, 24], [[32, 1], [24, 1]], 1),
    "rows of 64": ([2, 150, 16], [[2_500, 16, 1], [2_400, 16, 1]], 4),
    "transposed": ([70, 130], [[1, 70], [130, 1]], 4),
    "every second": ([9_000], [[2], [1]], 2),
    "rows of odd size": ([130, 51], [[52, 1], [51, 1]], 1),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_copies_move_every_byte_once(name: str) -> None:
    sizes, strides, item = LARGE[name]
    found = lowered_bytes(sizes, strides, [4096, 8192], item)
    assert found == Counter(wanted_bytes(sizes, strides, [4096, 8192], item))


# --- digests ------------------------------------------------------------------------------------


def digested(table: Table) -> list[tuple[int, int, int]]:
    """List what a table digests, as (digest, byte of the message, address)."""
    item, words, dims = (number(table, name) for name in ("ITEM", "WORDS", "DIMS"))
    found: list[tuple[int, int, int]] = []
    for record in table.records.tolist():
        address, count, place, entry, first = record[:5]
        sizes, steps = (record[5::2], record[6::2]) if dims else ([count], [1])
        end = min(count, (first + words) * 8 // item)
        for element in range(first * 8 // item, end):
            rest, offset = element, 0
            for size, step in zip(sizes, steps, strict=True):
                rest, index = divmod(rest, size)
                offset += index * step
            byte = (place - 1) * 8 + element * item
            found += [(entry, byte + k, address + offset * item + k) for k in range(item)]
    return found


@settings(max_examples=150, deadline=None)
@given(
    box=boxes(operands=1),
    item=st.sampled_from([1, 2, 4, 8]),
    start=st.integers(0, 9),
    offset=st.integers(0, 5),
)
def test_digests_read_every_byte_once(
    box: tuple[Row, list[Row]], item: int, start: int, offset: int
) -> None:
    sizes, strides = box
    tables = lower_digests(
        np.array([4096 + start * item]),
        array([sizes]),
        array(strides),
        np.array([item]),
        np.array([7]),
        np.array([offset * 8]),
    )
    found = [entry for table in tables for entry in digested(table)]
    wanted = [
        (7, offset * 8 + position * item + k, 4096 + start * item + element * item + k)
        for position, element in enumerate(elements(sizes, strides[0]))
        for k in range(item)
    ]
    assert sorted(found) == sorted(wanted)


def test_regions_may_be_strided_in_more_dims_than_tensors_mostly_have() -> None:
    sizes = [2] * 7
    strides = (row_major(array([sizes])) * array([[128, 64, 32, 16, 8, 4, 2]]))[0].tolist()
    one, start = np.array([1]), np.array([4096])
    tables = lower_digests(start, array([sizes]), array([strides]), one, one, 0 * one)
    found = [address for table in tables for _, _, address in digested(table)]
    assert found == [4096 + element for element in elements(sizes, strides)]

"""Index notation says where the elements of a box or a region are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tranship.cli.notation import View, box_text, region_text
from tranship.schema.manifest import IntExpression
from tranship.schema.records import contiguous_strides


@pytest.mark.parametrize(
    ("start", "extent", "step", "shape", "text"),
    [
        ((0, 0), (4, 8), None, (4, 8), "[:, :]"),
        ((1, 7), (3, 1), None, (4, 8), "[1..3, 7]"),
        (("tp * 2", 0), (2, 8), None, (4, 8), "[tp * 2 + 0..1, :]"),
        (("tp", 0), (1, 4), (1, 2), (4, 8), "[tp, 0..6:2]"),
        ((0,), ("min(3, 8 - tp * 3)",), None, (8,), "[0..<min(3, 8 - tp * 3)]"),
        (("tp",), ("n",), (2,), (8,), "[tp + (0..<n) * 2]"),
        ((3,), (0,), None, (8,), "[none]"),
        ((), (), None, (), "[]"),
    ],
)
def test_boxes(
    start: tuple[IntExpression, ...],
    extent: tuple[IntExpression, ...],
    step: tuple[int, ...] | None,
    shape: tuple[int, ...],
    text: str,
) -> None:
    assert box_text(start, extent, step, shape) == text


@pytest.mark.parametrize(
    ("offset", "extent", "strides", "text"),
    [
        (8388608, (512, 4096), (4096, 1), "[2048..2559, :]"),
        ("expert % 3 * 128 + 64", (8, 8), (8, 1), "[expert % 3, 8..15, :]"),
        ("layer * 64 + expert * 16", (2, 8), (8, 1), "[layer, expert, :, :]"),
        ("tp * 8 + 3", (2, 5), (16, 1), "[0..1, tp * 8 + 3 + 0..4]"),
        (0, (8, 4), (1, 8), "[0..3, :] transposed"),
        (2, (1, 2), (2, 1), "[1, :]"),
        (1, (64,), (2,), "elements 1 + 0..63 * 2"),
        ("4096 - tp", (1,), (1,), "[4096 - tp]"),
        (0, ("n", 8), (8, 1), "[0..<n, :]"),
        (0, (4,), ("n",), "elements 0..3 * n"),
        (7, (), (), "[7]"),
    ],
)
def test_regions_of_buffers_whose_shape_is_not_known(
    offset: IntExpression,
    extent: tuple[IntExpression, ...],
    strides: tuple[IntExpression, ...],
    text: str,
) -> None:
    assert region_text(offset, extent, strides) == text


@st.composite
def regions(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """A shape, and the first and last index of a box in each of its dims."""
    shape = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=4)))
    bounds = [sorted(draw(st.tuples(*[st.integers(0, size - 1)] * 2))) for size in shape]
    return shape, [(first, last) for first, last in bounds]


@given(regions())
def test_any_box_of_a_buffer_is_written_by_its_own_indices(
    region: tuple[tuple[int, ...], list[tuple[int, int]]],
) -> None:
    shape, bounds = region
    strides = contiguous_strides(shape)
    offset = sum(first * stride for (first, _), stride in zip(bounds, strides, strict=True))
    extent = tuple(last - first + 1 for first, last in bounds)
    expected = ", ".join(
        ":"
        if (first, last) == (0, size - 1)
        else str(first)
        if first == last
        else f"{first}..{last}"
        for (first, last), size in zip(bounds, shape, strict=True)
    )
    assert region_text(offset, extent, strides, View(strides, shape)) == f"[{expected}]"


@given(st.integers(2, 9), st.integers(2, 9))
def test_region_that_goes_on_in_the_next_row_is_no_box(rows: int, columns: int) -> None:
    view = View((columns, 1), (rows, columns))
    assert region_text(1, (columns,), (1,), view) == f"elements 1 + 0..{columns - 1} * 1"
    assert region_text(0, (columns,), (1,), view) == "[0, :]"

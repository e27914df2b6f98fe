"""Boxes against the elements that they stand for, which torch lists one by one."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.sglang.views import places, shapes, view_of, views
from tranship.runtime.frameworks.tracing.boxes import (
    Box,
    View,
    boxes,
    intersect,
    memory_shape,
    overlapping,
)
from tranship.schema.records import Ints


def numbered(shape: Ints) -> torch.Tensor:
    """Return a contiguous tensor that holds every element's position."""
    return torch.arange(math.prod(shape)).view(shape)


def listed(box: Box, shape: Ints) -> list[tuple[int, int]]:
    """List a box's elements: the position in a tensor of `shape` and that in the other memory."""
    tensor = numbered(shape)
    found: list[tuple[int, int]] = []
    for k in itertools.product(*map(range, box.extent)):
        index = [a + b * c for a, b, c in zip(box.start, box.step, k, strict=True)]
        there = box.offset + sum(a * b for a, b in zip(k, box.strides, strict=True))
        found.append((int(tensor[tuple(index)]), there))
    return found


@given(st.data())
def test_boxes_list_a_copy_element_by_element(data: st.DataObject):
    shape = data.draw(shapes())
    source = data.draw(views(numbered(shape)))
    target = data.draw(places(tuple(source.shape)))
    found = boxes(view_of(source), shape, view_of(target))
    pairs = [pair for box in found for pair in listed(box, shape)]
    expected = zip(map(int, source.flatten()), map(int, target.flatten()), strict=True)
    assert Counter(pairs) == Counter(expected)


@given(st.data())
def test_a_part_of_a_tensor_is_one_box(data: st.DataObject):
    shape = data.draw(shapes())
    start = [data.draw(st.integers(0, size - 1)) for size in shape]
    step = [data.draw(st.integers(1, 3)) for _ in shape]
    part = numbered(shape)[tuple(slice(a, None, b) for a, b in zip(start, step, strict=True))]
    target = data.draw(places(tuple(part.shape)))
    [box] = boxes(view_of(part), shape, view_of(target))
    assert box.start == tuple(start)
    assert box.extent == tuple(part.shape)
    assert box.offset == target.storage_offset()
    for dim, size in enumerate(part.shape):
        alone = (1, 0)
        assert (box.step[dim], box.strides[dim]) == (
            (step[dim], target.stride(dim)) if size > 1 else alone
        )


def test_rows_cut_in_the_middle_are_head_body_and_tail():
    source = View(3, (14,), (1,))  # of rows of 5: 2 of the first, 2 whole rows, 2 of the fourth
    assert boxes(source, (4, 5), View(100, (14,), (1,))) == (
        Box((0, 3), (1, 2), (1, 1), 100, (0, 1)),
        Box((1, 0), (2, 5), (1, 1), 102, (5, 1)),
        Box((3, 0), (1, 2), (1, 1), 112, (0, 1)),
    )


def test_an_interleaved_dim_is_one_box_for_each_member_of_the_shorter_part():
    source = numbered((6, 4)).view(2, 3, 4).transpose(0, 1)
    found = boxes(view_of(source), (6, 4), view_of(numbered((3, 2, 4))))
    assert found == (
        Box((0, 0), (3, 4), (1, 1), 0, (8, 1)),
        Box((3, 0), (3, 4), (1, 1), 4, (8, 1)),
    )


@pytest.mark.parametrize(
    ("view", "sizes", "reason"),
    [
        (View(0, (4,), (1,)), (2, 2), "cannot match"),
        (View(1, (6,), (1,)), (6,), "leaves a tensor"),
        (View(0, (70_000,), (0,)), (70_000,), "not made of boxes"),
    ],
)
def test_what_is_no_copy_of_boxes_is_refused(view: View, sizes: Ints, reason: str):
    with pytest.raises(ValueError, match=reason):
        boxes(view, (2, 3), view_of(numbered(sizes)))


def some_boxes(shape: Ints) -> st.SearchStrategy[Box]:
    """Draw boxes of a tensor that lie anywhere in another memory."""

    def box(draws: tuple[tuple[int, int, int, int], ...], offset: int) -> Box:
        kept = [
            range(start, size, step)[:most]
            for size, (start, step, most, _) in zip(shape, draws, strict=True)
        ]
        return Box(
            tuple(dim.start for dim in kept),
            tuple(len(dim) for dim in kept),
            tuple(dim.step for dim in kept),
            offset,
            tuple(by for *_, by in draws),
        )

    numbers = [
        st.tuples(st.integers(0, size - 1), st.integers(1, 4), st.integers(1, 6), st.integers(0, 9))
        for size in shape
    ]
    return st.builds(box, st.tuples(*numbers), st.integers(0, 9))


@given(st.data())
def test_an_intersection_pairs_the_places_of_the_common_elements(data: st.DataObject):
    shape = data.draw(st.lists(st.integers(1, 12), max_size=2).map(tuple))
    first, second = data.draw(some_boxes(shape)), data.draw(some_boxes(shape))
    left, right = dict(listed(first, shape)), dict(listed(second, shape))
    expected = Counter((left[number], right[number]) for number in left.keys() & right.keys())
    common = intersect(first, second)
    assert (common is None) == (not expected)
    if common:
        assert Counter(zip(*map(positions, common), strict=True)) == expected


def positions(view: View) -> list[int]:
    """List the positions of a view's elements in its memory."""
    return [
        view.offset + sum(a * b for a, b in zip(k, view.strides, strict=True))
        for k in itertools.product(*map(range, view.sizes))
    ]


@given(st.data())
def test_overlapping_names_two_boxes_with_a_common_element(data: st.DataObject):
    shape = data.draw(st.lists(st.integers(1, 12), max_size=2).map(tuple))
    found = data.draw(st.lists(some_boxes(shape), max_size=5))
    elements = [{number for number, _ in listed(box, shape)} for box in found]
    pair = overlapping(shape, found)
    if pair is None:
        assert sum(map(len, elements)) == len({number for each in elements for number in each})
    else:
        assert pair[0] != pair[1]
        assert elements[pair[0]] & elements[pair[1]]


@given(st.data())
def test_memory_shape_undoes_any_order_of_dims(data: st.DataObject):
    shape = data.draw(shapes())
    tensor = numbered(shape).permute(data.draw(st.permutations(range(len(shape)))))
    found = memory_shape(tuple(tensor.shape), tensor.stride())
    assert [size for size in found if size > 1] == [size for size in shape if size > 1]


def test_memory_shape_refuses_gaps():
    with pytest.raises(ValueError, match="not dense"):
        memory_shape((3, 4), (5, 1))

"""Boxes against the elements that they stand for, listed one by one with torch."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.sglang.boxes import Box, View, boxes, intersect, memory_shape, overlapping
from tests.sglang.views import positions, random_shapes, random_views, view_of


def listed(box: Box, shape: tuple[int, ...]) -> dict[int, int]:
    """Every element of a box: its position in the tensor, and in the other memory."""
    numbers = torch.arange(math.prod(shape)).view(shape).tolist()
    found: dict[int, int] = {}
    for k in itertools.product(*map(range, box.extent)):
        element = numbers
        for start, step, count in zip(box.start, box.step, k, strict=True):
            element = element[start + step * count]
        found[element] = box.offset + sum(n * by for n, by in zip(k, box.strides, strict=True))
    assert len(found) == box.size
    return found


@st.composite
def view_pairs(
    draw: st.DrawFn,
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """A view of a tensor of known shape, and a view of the same sizes of a larger memory."""
    shape = draw(random_shapes())
    view = draw(random_views(torch.arange(math.prod(shape)).view(shape)))
    room = draw(st.tuples(*(st.integers(0, 2) for _ in view.shape)))
    steps = draw(st.tuples(*(st.integers(1, 2) for _ in view.shape)))
    order = draw(st.permutations(range(view.dim())))
    padded = [
        (size + extra) * step for size, extra, step in zip(view.shape, room, steps, strict=True)
    ]
    memory = torch.arange(math.prod(padded)).view([padded[dim] for dim in order])
    other = memory.permute([order.index(dim) for dim in range(view.dim())])
    for dim, (size, extra, step) in enumerate(zip(view.shape, room, steps, strict=True)):
        other = other.narrow(dim, extra * step, size * step)[(slice(None),) * dim + (slice(None, None, step),)]
    return view, other, shape

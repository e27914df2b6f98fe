"""Random views of tensors, for tests of what recognizes them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from tranship.runtime.frameworks.tracing.boxes import View

Step = Callable[[st.DrawFn, torch.Tensor], torch.Tensor]


def view_of(tensor: torch.Tensor) -> View:
    """Describe a tensor as a view of its storage."""
    return View(int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """Draw small shapes of up to three dims, without empty ones."""
    return st.lists(st.integers(1, 6), max_size=3).map(tuple)


@st.composite
def views(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    """Draw a view of `tensor` that up to four operations make."""
    for step in draw(st.lists(st.sampled_from(STEPS), max_size=4)):
        tensor = step(draw, tensor)
    return tensor


@st.composite
def places(draw: st.DrawFn, sizes: tuple[int, ...]) -> torch.Tensor:
    """Draw a view of the given sizes, in which no element occurs twice, of a larger memory."""
    order = draw(st.permutations(range(len(sizes))))
    before = draw(st.tuples(*(st.integers(0, 2) for _ in sizes)))
    steps = draw(st.tuples(*(st.integers(1, 2) for _ in sizes)))
    ends = [skip + size * step for skip, size, step in zip(before, sizes, steps, strict=True)]
    memory = torch.arange(math.prod(ends)).view([ends[dim] for dim in order])
    whole = memory.permute([order.index(dim) for dim in range(len(sizes))])
    slices: Any = tuple(slice(skip, None, step) for skip, step in zip(before, steps, strict=True))
    return whole[slices]


def _dim(draw: st.DrawFn, tensor: torch.Tensor) -> int:
    return draw(st.integers(0, tensor.dim() - 1))


def _narrow(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    dim = _dim(draw, tensor)
    start = draw(st.integers(0, tensor.shape[dim]))
    return tensor.narrow(dim, start, draw(st.integers(0, tensor.shape[dim] - start)))


def _every(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    dim = _dim(draw, tensor)
    slices: Any = (slice(None),) * dim + (slice(None, None, draw(st.integers(2, 3))),)
    return tensor[slices]


def _permute(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.permute(draw(st.permutations(range(tensor.dim()))))


def _split(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    dim = _dim(draw, tensor)
    size = tensor.shape[dim]
    parts = draw(st.sampled_from([by for by in range(1, size + 1) if size % by == 0] or [1]))
    sizes = (*tensor.shape[:dim], parts, size // parts, *tensor.shape[dim + 1 :])
    return tensor.view(sizes)


def _flatten(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    try:
        return tensor.view(-1)
    except RuntimeError:  # only a copy would be flat
        return tensor


def _expand(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.unsqueeze(0).expand(draw(st.integers(1, 3)), *tensor.shape)


def _unfold(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    dim = _dim(draw, tensor)
    size = draw(st.integers(0, tensor.shape[dim]))
    return tensor.unfold(dim, size, draw(st.integers(1, 2)))


def _diagonal(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.diagonal() if tensor.dim() > 1 else tensor


def _unless_scalar(step: Step) -> Step:
    return lambda draw, tensor: step(draw, tensor) if tensor.dim() else tensor


STEPS: tuple[Step, ...] = (
    *map(_unless_scalar, (_narrow, _every, _permute, _split, _unfold)),
    _flatten,
    _expand,
    _diagonal,
)

"""The check: two models of one class hold the same bytes."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def raw(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def different(model: nn.Module, wanted: nn.Module) -> list[str]:
    """Return the names of all tensors that are not alike, byte for byte."""
    held, other = dict(tensors(model)), dict(tensors(wanted))
    missing = sorted(held.keys() ^ other.keys())
    return missing + [
        name
        for name in held.keys() & other.keys()
        if held[name].dtype != other[name].dtype
        or held[name].shape != other[name].shape
        or not torch.equal(raw(held[name]), raw(other[name]))
    ]


def verdict(model: nn.Module, wanted: nn.Module) -> tuple[bool, str]:
    """Say whether all bytes are equal, and in a line of text what was compared."""
    names = different(model, wanted)
    if names:
        return False, f"different: {', '.join(sorted(names))}"
    sizes = [tensor.nbytes for _, tensor in tensors(model)]
    return True, f"{len(sizes)} tensors, {sum(sizes):,} bytes: equal"

"""Which tensors share memory, exactly: two interleaved views of one storage do not."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Span = tuple[int, int]


def has_memory(tensor: Tensor) -> bool:
    """Whether `tensor` is elements at addresses: not meta, sparse, nested or wrapping others."""
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return False
    return tensor.device.type != "meta"


def span(tensor: Tensor) -> Span:
    """Return the addresses of the first byte of `tensor` and of the one after its last byte."""
    if tensor.numel() == 0:
        return 0, 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def within(inner: Tensor, outer: Tensor) -> bool:
    """Whether `inner` lies between the first and the last byte of `outer`."""
    (start, end), (first, last) = span(inner), span(outer)
    return inner.numel() == 0 or (first <= start and end <= last)


def shared(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the names of every two tensors that have a byte in common, by ascending address."""
    spans = {name: span(tensor) for name, tensor in tensors.items() if tensor.numel()}
    open_spans: list[str] = []
    for name in sorted(spans, key=lambda name: (spans[name], name)):
        open_spans = [other for other in open_spans if spans[other][1] > spans[name][0]]
        for other in open_spans:
            if np.shares_memory(_bytes(tensors[other]), _bytes(tensors[name])):
                yield other, name
        open_spans.append(name)


class _Bytes:
    """The bytes of a tensor as numpy's array interface describes memory; they are never read."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.element_size()
        strides = tuple(stride * size for stride in tensor.stride())
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (*tensor.shape, size),
            "strides": (*strides, 1),
            "data": (tensor.data_ptr(), True),
        }


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    # The addresses may be those of a GPU: numpy compares them and nothing more.
    return np.asarray(_Bytes(tensor))

"""Tell whether memory that others have mapped is still what it was when it was offered."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from tranship.runtime.overlap import span
from tranship.runtime.sharing import cuda_calls
from tranship.runtime.sharing.cuda_calls import CudaError
from tranship.runtime.sharing.exports import find_ranges


@dataclass(frozen=True, slots=True)
class Watch:
    """What CUDA tells of the allocations and chunks behind an offer, by their addresses.

    `handles` are those of allocations; `identities` are those of mapped chunks.
    """

    handles: tuple[tuple[int, bytes], ...]
    identities: tuple[tuple[int, int], ...]

    def unchanged(self) -> bool:
        """Whether all of it is there, and is the same memory: microseconds per allocation."""
        try:
            return all(cuda_calls.get_ipc_handle(at) == was for at, was in self.handles) and all(
                cuda_calls.buffer_id(at) == was for at, was in self.identities
            )
        except CudaError:
            return False


def watch(tensors: Iterable[Tensor]) -> Watch:
    """Look at the memory of tensors that were offered, of the current device."""
    ranges, _ = find_ranges(span(tensor) for tensor in tensors if tensor.numel())
    handles: list[tuple[int, bytes]] = []
    identities: list[tuple[int, int]] = []
    for base, _ in ranges:
        try:
            handles.append((base, cuda_calls.get_ipc_handle(base)))
        except CudaError:
            identities.append((base, cuda_calls.buffer_id(base)))
    return Watch(tuple(handles), tuple(identities))

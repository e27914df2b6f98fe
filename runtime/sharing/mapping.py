"""Map the memory that another process of this host offers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tranship.runtime.sharing import cuda_calls
from tranship.runtime.sharing.cuda_calls import CudaError
from tranship.runtime.sharing.descriptors import close_all
from tranship.runtime.sharing.offer import Allocation, Offer
from tranship.schema.diagnostics import Diagnostic, DiagnosticError


class Mapped:
    """Memory of another process on the GPU `source`, mapped for the kernels of `device`.

    The other process may write it, or even give it back, at any time: see `Offer`.
    """

    def __init__(
        self,
        device: torch.device,
        source: torch.device,
        places: Mapping[str, tuple[int, int]],
        mappings: ExitStack,
    ) -> None:
        self.device = device
        self.source = source
        self._places = dict(places)
        self._mappings = mappings
        self._open = True

    def __contains__(self, name: str) -> bool:
        """Whether there is a region of this name."""
        return name in self._places

    def address(self, name: str) -> int:
        """Return the address, in this process, of the first byte of a region.

        Raises:
            KeyError: the offer has no such region.
            ValueError: the mapping is closed.
        """
        return self._place(name)[0]

    def memory(self, name: str) -> Tensor:
        """Return the bytes of a region as a uint8 tensor, which must not be used after `close`.

        Raises:
            KeyError: the offer has no such region.
            ValueError: the mapping is closed.
        """
        address, length = self._place(name)
        memory = torch.as_tensor(_DeviceBytes(address, length), device=self.device)
        # A torch that takes the device from the address would copy memory of another GPU to this.
        if memory.data_ptr() != address or memory.numel() != length:
            raise AssertionError(f"torch made {name!r} other memory than the {length} bytes mapped")
        return memory

    def close(self) -> None:
        """Wait for the GPU, then unmap everything, last mapped first. May be repeated.

        Raises:
            CudaError: a mapping could not be undone; the others are undone.
        """
        if not self._open:
            return
        self._open = False
        with cuda_calls.current(self.device), self._mappings:
            # Also if waiting fails the mappings are closed.
            cuda_calls.synchronize(self.device)

    def _place(self, name: str) -> tuple[int, int]:
        if not self._open:
            raise ValueError("the mapping is closed")
        return self._places[name]


def open_offer(offer: Offer, descriptors: Sequence[int], device: torch.device) -> Mapped:
    """Map everything that `offer` has for the kernels of `device`, which is a GPU.

    The descriptors, those that came with the offer, are closed in any case. If anything cannot be
    mapped, nothing stays mapped.

    Raises:
        DiagnosticError: TS817, the memory cannot be mapped here; TS818.
        CudaError: it cannot be mapped, say because the other process has ended.
        ValueError: there are not as many descriptors as chunks.
    """
    try:
        chunks = sum(len(allocation.chunks) for allocation in offer.allocations)
        if len(descriptors) != chunks:
            raise ValueError(f"{len(descriptors)} descriptors came for {chunks} chunks")
        left = iter(descriptors)
        with cuda_calls.current(device) as ordinal, ExitStack() as mappings:
            source = _reachable(offer, ordinal)
            bases = [_open(found, left, ordinal, mappings) for found in offer.allocations]
            places = {
                name: (bases[region.allocation] + region.offset, region.length)
                for name, region in offer.regions.items()
            }
            here, there = torch.device("cuda", ordinal), torch.device("cuda", source)
            return Mapped(here, there, places, mappings.pop_all())
    finally:
        close_all(descriptors)


def _open(
    allocation: Allocation, descriptors: Iterator[int], ordinal: int, mappings: ExitStack
) -> int:
    """Map one allocation for the current device, `ordinal`, and return its base here."""
    if allocation.handle is not None:
        base = _open_handle(bytes.fromhex(allocation.handle))
        mappings.callback(cuda_calls.close_ipc_handle, base)
        return base
    base = cuda_calls.reserve(allocation.size)
    mappings.callback(cuda_calls.free_reserved, base, allocation.size)
    address = base
    for chunk in allocation.chunks:
        _map(address, chunk.size, next(descriptors))
        mappings.callback(cuda_calls.unmap_chunk, address, chunk.size)
        address += chunk.size
    cuda_calls.allow_access(base, allocation.size, ordinal)
    return base


def _open_handle(handle: bytes) -> int:
    try:
        return cuda_calls.open_ipc_handle(handle)
    except CudaError as error:
        # What CUDA answers to the process that the handle is of.
        if error.error != "cudaErrorDeviceUninitialized":
            raise
        raise _unmappable(
            "the memory is this process's own, and CUDA maps only that of others",
            "use the tensors themselves where both sides are one process",
        ) from None


def _map(address: int, size: int, descriptor: int) -> None:
    chunk = cuda_calls.import_descriptor(descriptor)
    try:
        cuda_calls.map_chunk(address, size, chunk)
    finally:
        # A mapping holds its chunk by itself.
        cuda_calls.release_handle(chunk)


def _reachable(offer: Offer, ordinal: int) -> int:
    """Return the GPU of the offer, or refuse one that the GPU `ordinal` cannot read (TS817).

    GPUs are told by UUID: their ordinals may differ between processes.
    """
    visible = cuda_calls.device_uuids()
    if offer.device == visible[ordinal]:
        return ordinal
    if offer.device not in visible:
        raise _unmappable(
            f"the memory is on GPU {offer.device}, which this process does not see",
            "let CUDA_VISIBLE_DEVICES of this process have that GPU too",
        )
    source = visible.index(offer.device)
    if not cuda_calls.can_access(ordinal, source):
        raise _unmappable(
            f"GPU {visible[ordinal]} has no peer access to the memory of GPU {offer.device}",
            "use GPUs that `nvidia-smi topo -p2p r` shows as OK, or a transport over the network",
        )
    return source


def _unmappable(message: str, advice: str) -> DiagnosticError:
    return DiagnosticError([Diagnostic("TS817", message, help=advice)])


class _DeviceBytes:
    """Bytes at an address, as the CUDA array interface (version 3) describes memory."""

    def __init__(self, address: int, length: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (length,),
            "data": (address, False),
        }

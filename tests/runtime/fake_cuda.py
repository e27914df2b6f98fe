"""A CUDA driver for tests: memory that is only numbers, and a record of what was asked of it."""

import os
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

from tranship.runtime.sharing import cuda_calls
from tranship.runtime.sharing.cuda_calls import CudaError

Kind = Literal["malloc", "chunk", "pooled", "sealed", "foreign"]

FIRST_MAPPED = 1 << 40
MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """An allocation or a chunk; `number` tells it from all others that there ever were."""

    base: int
    size: int
    kind: Kind
    number: int


@dataclass
class FakeCuda:
    """Both ends' driver. `failing` is a call, and the how manieth of it fails."""

    memory: list[Memory] = field(default_factory=list[Memory])
    uuids: tuple[str, ...] = ("GPU-a", "GPU-b")
    peers: bool = True
    failing: tuple[str, int] = ("", 0)
    own_handles: bool = False
    calls: Counter[str] = field(default_factory=Counter[str])
    undone: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    open: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    references: int = 0
    accessible: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    devices: list[int] = field(default_factory=list[int])
    synchronized: list[int] = field(default_factory=list[int])
    next_mapped: int = FIRST_MAPPED

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put this driver in the place of all calls."""
        for name, function in vars(FakeCuda).items():
            if callable(function) and not name.startswith("_") and name not in ("install", "add"):
                monkeypatch.setattr(cuda_calls, name, getattr(self, name))

    def add(self, base: int, size: int, kind: Kind) -> None:
        """Allocate at an address, in the place of what was there."""
        self.memory = [found for found in self.memory if found.base != base]
        self.memory.append(Memory(base, size, kind, 1000 + self.calls["add"]))
        self.calls["add"] += 1

    @contextmanager
    def current(self, device: torch.device) -> Generator[int]:
        self.devices.append(device.index)
        yield device.index
        assert self.devices.pop() == device.index

    def synchronize(self, device: torch.device) -> None:
        self._count("synchronize")
        self.synchronized.append(len(self.undone))

    def device_uuids(self) -> tuple[str, ...]:
        return self.uuids

    def can_access(self, ordinal: int, peer: int) -> bool:
        assert ordinal != peer
        return self.peers

    def address_range(self, address: int) -> tuple[int, int]:
        found = self._at("cuMemGetAddressRange", address)
        return found.base, found.size

    def buffer_id(self, address: int) -> int:
        return self._at("cuPointerGetAttribute", address).number

    def is_pooled(self, address: int) -> bool:
        return self._at("cuPointerGetAttribute", address).kind == "pooled"

    def get_ipc_handle(self, address: int) -> bytes:
        found = self._at("cudaIpcGetMemHandle", address)
        if found.kind != "malloc":
            raise CudaError("cudaIpcGetMemHandle", "cudaErrorInvalidValue")
        return found.number.to_bytes(64, "little")

    def open_ipc_handle(self, handle: bytes) -> int:
        self._count("cudaIpcOpenMemHandle")
        if self.own_handles:
            raise CudaError("cudaIpcOpenMemHandle", "cudaErrorDeviceUninitialized")
        number = int.from_bytes(handle, "little")
        (found,) = [memory for memory in self.memory if memory.number == number]
        return self._mapped("handle", found.size)

    def close_ipc_handle(self, base: int) -> None:
        self._undo("handle", base)

    def retain_handle(self, address: int) -> Memory:
        found = self._at("cuMemRetainAllocationHandle", address)
        if found.kind == "foreign":
            raise CudaError("cuMemRetainAllocationHandle", "CUDA_ERROR_INVALID_VALUE")
        self.references += 1
        return found

    def release_handle(self, chunk: Memory) -> None:
        self.references -= 1

    def export_descriptor(self, chunk: Memory) -> int:
        self._count("cuMemExportToShareableHandle")
        if chunk.kind != "chunk":
            raise CudaError("cuMemExportToShareableHandle", "CUDA_ERROR_INVALID_VALUE")
        descriptor = os.memfd_create("chunk")
        os.write(descriptor, str(chunk.number).encode())
        return descriptor

    def import_descriptor(self, descriptor: int) -> Memory:
        self._count("cuMemImportFromShareableHandle")
        number = int(os.pread(descriptor, 20, 0))
        (found,) = [memory for memory in self.memory if memory.number == number]
        self.references += 1
        return found

    def reserve(self, size: int) -> int:
        self._count("cuMemAddressReserve")
        return self._mapped("addresses", size)

    def free_reserved(self, address: int, size: int) -> None:
        self._undo("addresses", address)

    def map_chunk(self, address: int, size: int, chunk: Memory) -> None:
        self._count("cuMemMap")
        assert size == chunk.size
        self.open.append(("chunk", address))

    def unmap_chunk(self, address: int, size: int) -> None:
        self._undo("chunk", address)

    def allow_access(self, address: int, size: int, ordinal: int) -> None:
        self._count("cuMemSetAccess")
        self.accessible.append((address, size, ordinal))

    def _at(self, call: str, address: int) -> Memory:
        self._count(call)
        for found in self.memory:
            if found.base <= address < found.base + found.size:
                return found
        raise CudaError(call, "CUDA_ERROR_INVALID_VALUE")

    def _count(self, call: str) -> None:
        assert self.devices, f"{call} without a current device"
        self.calls[call] += 1
        if (call, self.calls[call] - 1) == self.failing:
            raise CudaError(call, "CUDA_ERROR_OUT_OF_MEMORY")

    def _mapped(self, what: str, size: int) -> int:
        base, self.next_mapped = self.next_mapped, self.next_mapped + size + MIB
        self.open.append((what, base))
        return base

    def _undo(self, what: str, base: int) -> None:
        assert (what, base) == self.open.pop(), "not the last that was opened"
        self._count("undo")
        self.undone.append((what, base))


@dataclass(frozen=True)
class _FakeTensor:
    """What sharing asks of a tensor: contiguous bytes at an address of a GPU."""

    address: int
    size: int
    device: torch.device

    @property
    def shape(self) -> tuple[int]:
        return (self.size,)

    def numel(self) -> int:
        return self.size

    def stride(self) -> tuple[int]:
        return (1,)

    def element_size(self) -> int:
        return 1

    def data_ptr(self) -> int:
        return self.address

    def untyped_storage(self) -> "_FakeTensor":
        return self


def fake_tensor(address: int, size: int, device: str = "cuda:0") -> Tensor:
    """Return what stands for a uint8 tensor of `size` elements on a GPU."""
    return cast(Tensor, _FakeTensor(address, size, torch.device(device)))

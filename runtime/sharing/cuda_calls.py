"""The CUDA calls that sharing memory takes, each with its return code checked.

Addresses are integers, sizes bytes. The device of a call is the current one; see `current`.
"""

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import torch

from tranship.schema.diagnostics import Diagnostic, DiagnosticError

HANDLE_BYTES = 64
"""Bytes of a `cudaIpcMemHandle_t`: CUDA_IPC_HANDLE_SIZE."""


class _Properties(Protocol):
    """What torch's stubs leave out of the properties of a GPU."""

    uuid: object


class CudaError(RuntimeError):
    """A CUDA call failed: `call` is its name, `error` the name of what it returned."""

    def __init__(self, call: str, error: str) -> None:
        super().__init__(f"{call} failed with {error}")
        self.call = call
        self.error = error


@contextmanager
def current(device: torch.device) -> Generator[int]:
    """Make `device`, and its primary context, current in this thread; yield its ordinal."""
    with torch.cuda.device(device):
        ordinal = torch.cuda.current_device()
        # torch makes no context where the device was current already, and driver calls need one.
        _runtime("cudaSetDevice", ordinal)
        yield ordinal


def synchronize(device: torch.device) -> None:
    """Wait for everything that was launched on `device`."""
    torch.cuda.synchronize(device)


def device_uuids() -> tuple[str, ...]:
    """Return the UUIDs of the GPUs that this process sees, by ordinal."""
    return tuple(map(_uuid, range(torch.cuda.device_count())))


def device_uuid(device: torch.device) -> str:
    """Return the UUID of one GPU, which has an index."""
    return _uuid(device.index)


def can_access(ordinal: int, peer: int) -> bool:
    """Whether the GPU `ordinal` can read and write the memory of another one."""
    return torch.cuda.can_device_access_peer(ordinal, peer)


def address_range(address: int) -> tuple[int, int]:
    """Return base and size of the allocation, or of the mapped chunk, that `address` lies in."""
    base, size = _driver("cuMemGetAddressRange", address)
    return int(base), int(size)


def buffer_id(address: int) -> int:
    """Return a number of the memory at `address` that this process never gives to other memory.

    The CUDA driver API promises it of CU_POINTER_ATTRIBUTE_BUFFER_ID.
    """
    return int(_attribute("CU_POINTER_ATTRIBUTE_BUFFER_ID", address))


def is_pooled(address: int) -> bool:
    """Whether the memory at `address` is of a stream-ordered pool, as from cudaMallocAsync."""
    return bool(int(_attribute("CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE", address)))


def get_ipc_handle(address: int) -> bytes:
    """Return the handle of an allocation of cudaMalloc, `HANDLE_BYTES` bytes."""
    handle = _runtime("cudaIpcGetMemHandle", address)
    # The struct has an attribute for its bytes in some versions of cuda-bindings (12.9, 13.3.1)
    # and none in others (13.5).
    return ctypes.string_at(handle.getPtr(), HANDLE_BYTES)


def open_ipc_handle(handle: bytes) -> int:
    """Map another process's allocation for the current device, and return its base."""
    runtime = _module("runtime")
    copy = runtime.cudaIpcMemHandle_t()
    ctypes.memmove(copy.getPtr(), handle, HANDLE_BYTES)
    return int(_runtime("cudaIpcOpenMemHandle", copy, runtime.cudaIpcMemLazyEnablePeerAccess))


def close_ipc_handle(base: int) -> None:
    """Undo one `open_ipc_handle`."""
    _runtime("cudaIpcCloseMemHandle", base)


def open_event(handle: bytes) -> Any:
    """Open another process's event, of the current device."""
    runtime = _module("runtime")
    copy = runtime.cudaIpcEventHandle_t()
    ctypes.memmove(copy.getPtr(), handle, HANDLE_BYTES)
    return _runtime("cudaIpcOpenEventHandle", copy)


def hold_stream(stream: int, event: Any) -> None:
    """Let a stream wait for an event."""
    _runtime("cudaStreamWaitEvent", stream, event, 0)


def wait_value(stream: int, address: int, value: int) -> None:
    """Let a stream wait until the word at `address` is `value` or above, as int32 that wrap."""
    least = int(_module("driver").CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ)
    _driver("cuStreamWaitValue32", stream, address, value % 2**32, least)


def write_value(stream: int, address: int, value: int) -> None:
    """Let a stream write a word of 32 bits, after everything that it has written before."""
    _driver("cuStreamWriteValue32", stream, address, value % 2**32, 0)


def copy(stream: int, target: int, source: int, size: int) -> None:
    """Let a stream copy bytes, between GPUs too, by the copy engines if it is between GPUs."""
    kind = _module("runtime").cudaMemcpyKind.cudaMemcpyDefault
    _runtime("cudaMemcpyAsync", target, source, size, kind, stream)


def new_stream() -> int:
    """Make a stream of the current device that is nobody else's, and waits for no other."""
    flags = int(_module("driver").CUstream_flags.CU_STREAM_NON_BLOCKING)
    return int(_driver("cuStreamCreate", flags))


def close_stream(stream: int) -> None:
    """Undo `new_stream`."""
    _driver("cuStreamDestroy", stream)


def close_event(event: Any) -> None:
    """Undo `open_event`."""
    _runtime("cudaEventDestroy", event)


def retain_handle(address: int) -> Any:
    """Return a reference to the chunk mapped at `address`, to be released."""
    return _driver("cuMemRetainAllocationHandle", address)


def release_handle(chunk: Any) -> None:
    """Give back a reference to a chunk."""
    _driver("cuMemRelease", chunk)


def export_descriptor(chunk: Any) -> int:
    """Return a new file descriptor for a chunk."""
    return int(_driver("cuMemExportToShareableHandle", chunk, _posix_descriptor(), 0))


def import_descriptor(descriptor: int) -> Any:
    """Return a reference, to be released, to a chunk; its descriptor may be closed then."""
    return _driver("cuMemImportFromShareableHandle", descriptor, _posix_descriptor())


def reserve(size: int) -> int:
    """Reserve addresses without memory, and return the first."""
    return int(_driver("cuMemAddressReserve", size, 0, 0, 0))


def free_reserved(address: int, size: int) -> None:
    """Undo `reserve`; nothing may be mapped there."""
    _driver("cuMemAddressFree", address, size)


def map_chunk(address: int, size: int, chunk: Any) -> None:
    """Map a whole chunk to reserved addresses."""
    _driver("cuMemMap", address, size, 0, chunk, 0)


def unmap_chunk(address: int, size: int) -> None:
    """Undo `map_chunk`."""
    _driver("cuMemUnmap", address, size)


def allow_access(address: int, size: int, ordinal: int) -> None:
    """Let the GPU `ordinal` read and write mapped chunks."""
    driver = _module("driver")
    access = driver.CUmemAccessDesc()
    access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = ordinal
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    _driver("cuMemSetAccess", address, size, [access], 1)


def _uuid(ordinal: int) -> str:
    properties = cast(_Properties, torch.cuda.get_device_properties(ordinal))
    return str(properties.uuid)


def _posix_descriptor() -> Any:
    kinds = _module("driver").CUmemAllocationHandleType
    return kinds.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def _attribute(name: str, address: int) -> Any:
    attribute = getattr(_module("driver").CUpointer_attribute, name)
    return _driver("cuPointerGetAttribute", attribute, address)


def _driver(call: str, *arguments: object) -> Any:
    return _values(call, getattr(_module("driver"), call)(*arguments))


def _runtime(call: str, *arguments: object) -> Any:
    try:
        return _values(call, getattr(_module("runtime"), call)(*arguments))
    except CudaError:
        # The runtime keeps an error until it is asked for, and would blame the next kernel launch.
        _module("runtime").cudaGetLastError()
        raise


def _values(call: str, answer: tuple[Any, ...]) -> Any:
    """Return what a call returned besides its code: nothing, one value or a tuple."""
    code, *values = answer
    if int(code) != 0:
        raise CudaError(call, code.name)
    return values[0] if len(values) == 1 else tuple(values)


@cache
def _module(name: str) -> Any:
    """Import `driver` or `runtime` of cuda-bindings, by name: the package may not be installed."""
    try:
        return import_module(f"cuda.bindings.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cuda":
            raise
        raise DiagnosticError([_not_installed()]) from None


def _not_installed() -> Diagnostic:
    return Diagnostic(
        "TS818",
        "cuda-bindings is not installed, and sharing GPU memory needs it",
        help="install tranship with its cuda extra",
        suggestion="pip install 'tranship[cuda]'",
    )

"""Calls of CUDA: what is made of their codes, and of a package that is missing."""

import ctypes
import sys
from collections.abc import Callable, Generator
from enum import IntEnum
from types import SimpleNamespace

import pytest

from tranship.runtime.sharing import cuda_calls
from tranship.runtime.sharing.cuda_calls import CudaError
from tranship.schema.diagnostics import DiagnosticError


@pytest.fixture
def bindings(monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[[str, object], None]]:
    """Puts something in the place of a module of cuda-bindings."""
    forget = cuda_calls._module.cache_clear  # pyright: ignore[reportPrivateUsage] -- no other way
    forget()

    def put(name: str, module: object) -> None:
        monkeypatch.setitem(sys.modules, f"cuda.bindings.{name}", module)

    yield put
    forget()


def test_a_missing_package_is_reported(bindings: Callable[[str, object], None]) -> None:
    bindings("driver", None)
    with pytest.raises(DiagnosticError) as caught:
        cuda_calls.address_range(0)
    (finding,) = caught.value.diagnostics
    assert (finding.code, finding.suggestion) == ("TS818", "pip install 'tranship[cuda]'")


class Code(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1


def test_what_a_call_returns_is_checked(bindings: Callable[[str, object], None]) -> None:
    answers = {16: (Code.CUDA_SUCCESS, 8, 64), 99: (Code.CUDA_ERROR_INVALID_VALUE, None, None)}
    bindings("driver", SimpleNamespace(cuMemGetAddressRange=answers.get))
    assert cuda_calls.address_range(16) == (8, 64)
    with pytest.raises(CudaError) as caught:
        cuda_calls.address_range(99)
    assert (caught.value.call, caught.value.error) == (
        "cuMemGetAddressRange",
        "CUDA_ERROR_INVALID_VALUE",
    )


def test_a_failed_call_of_the_runtime_leaves_no_error_behind(
    bindings: Callable[[str, object], None],
) -> None:
    asked: list[str] = []

    def fail(_base: int) -> tuple[Code]:
        return (Code.CUDA_ERROR_INVALID_VALUE,)

    def last_error() -> tuple[Code]:
        asked.append("cudaGetLastError")
        return (Code.CUDA_ERROR_INVALID_VALUE,)

    runtime = SimpleNamespace(cudaIpcCloseMemHandle=fail, cudaGetLastError=last_error)
    bindings("runtime", runtime)
    with pytest.raises(CudaError, match="cudaIpcCloseMemHandle failed"):
        cuda_calls.close_ipc_handle(0)
    assert asked == ["cudaGetLastError"]


class StructHandle:
    """A `cudaIpcMemHandle_t` as cuda-bindings has it: some bytes, and where they are."""

    def __init__(self) -> None:
        self.content = ctypes.create_string_buffer(64)

    def getPtr(self) -> int:
        return ctypes.addressof(self.content)


def test_a_handle_is_64_bytes_there_and_back(bindings: Callable[[str, object], None]) -> None:
    handle = bytes(range(64))
    seen: list[bytes] = []

    def get(_base: int) -> tuple[Code, StructHandle]:
        struct = StructHandle()
        ctypes.memmove(struct.content, handle, 64)
        return Code.CUDA_SUCCESS, struct

    def put(struct: StructHandle, flags: int) -> tuple[Code, int]:
        seen.append(struct.content.raw)
        return Code.CUDA_SUCCESS, 4096 + flags

    runtime = SimpleNamespace(
        cudaIpcGetMemHandle=get,
        cudaIpcOpenMemHandle=put,
        cudaIpcMemHandle_t=StructHandle,
        cudaIpcMemLazyEnablePeerAccess=1,
    )
    bindings("runtime", runtime)
    assert cuda_calls.get_ipc_handle(0) == handle
    assert cuda_calls.open_ipc_handle(handle) == 4097
    assert seen == [handle]

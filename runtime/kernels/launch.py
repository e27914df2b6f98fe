"""Tables bound to a device: the launches that a step makes, the same every time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, cast

import torch
import triton.language as tl
from torch import Tensor

from tranship.runtime.kernels import copying, quantizing
from tranship.runtime.kernels.tables import Option, Table
from tranship.schema.dtypes import DType


class _Kernel(Protocol):
    """What triton's types do not say of a kernel: indexed by its grid it can be called."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...


_MODULES = MappingProxyType(
    {
        "copy_chunks": copying,
        "copy_rows": copying,
        "copy_elements": copying,
        "digest_elements": copying,
        "quantize_blocks": quantizing,
        "quantize_tiles": quantizing,
        "raise_amaxes": quantizing,
        "raise_to_parts": quantizing,
        "convert_tiles": quantizing,
    }
)
"""Where each kernel is."""

_TENSORS = MappingProxyType(
    {
        "copy_chunks": ("taken", "kept"),
        "copy_rows": ("taken", "kept"),
        "copy_elements": (),
        "digest_elements": ("digests",),
        "quantize_blocks": ("fragments", "digests"),
        "quantize_tiles": ("fragments", "amaxes"),
        "raise_amaxes": ("fragments", "amaxes"),
        "raise_to_parts": ("amaxes",),
        "convert_tiles": (),
    }
)
"""Tensors that each kernel takes after its records, in order."""

_TRITON_DTYPES = MappingProxyType(
    {
        DType.F32: tl.float32,
        DType.BF16: tl.bfloat16,
        DType.F16: tl.float16,
        DType.F8E4M3FN: tl.float8e4nv,
        DType.F8E5M2: tl.float8e5,
        DType.F8E8M0FNU: tl.uint8,
    }
)

Launch = Callable[[], None]
"""Enqueues one kernel on the current stream."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Tensors that launches share: digests int64 `[entries, LANES]`, amaxes int32.

    `taken` are of what copies read, `kept` of what targets hold.
    """

    taken: Tensor
    kept: Tensor
    amaxes: Tensor


def bind_tables(tables: Sequence[Table], shared: Shared) -> list[Launch]:
    """Put tables on the device of `shared`, compile their kernels, and return the launches."""
    return [_bind(table, shared) for table in tables if len(table.records)]


def bind_digests(tables: Sequence[Table], digests: Tensor) -> list[Launch]:
    """Bind tables that do nothing but to digest."""
    return bind_tables(tables, Shared(digests, digests, digests))


def _bind(table: Table, shared: Shared) -> Launch:
    device = shared.kept.device
    records = torch.from_numpy(table.records).to(device)
    fragments = records
    if table.fragments is not None:
        fragments = torch.from_numpy(table.fragments).to(device)
    tensors = {"taken": shared.taken, "kept": shared.kept, "amaxes": shared.amaxes}
    tensors |= {"digests": shared.kept, "fragments": fragments}
    kernel = cast(_Kernel, getattr(_MODULES[table.kernel], table.kernel))
    arguments = [records, *(tensors[name] for name in _TENSORS[table.kernel])]
    options = {name: _option(option) for name, option in table.options.items()}
    if device.type == "cuda":
        # Without programs it compiles and loads the kernel, and does nothing.
        kernel[0,](*arguments, **options)
    programs = (len(records),)

    def launch() -> None:
        kernel[programs](*arguments, **options)

    return launch


def _option(option: Option) -> object:
    return _TRITON_DTYPES[option] if isinstance(option, DType) else option

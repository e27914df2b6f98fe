"""The tensors of a checkpoint without their values: names, dtypes and shapes."""

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tranship.runtime.dtypes import torch_dtype
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.dtypes import DType
from tranship.schema.records import Ints

Sources = Mapping[str, tuple[DType, Ints]]
"""Dtype and shape of every tensor, by name."""

_SAFETENSORS: Mapping[str, DType] = MappingProxyType(
    {
        "F64": DType.F64,
        "F32": DType.F32,
        "F16": DType.F16,
        "BF16": DType.BF16,
        "F8_E4M3": DType.F8E4M3FN,
        "F8_E5M2": DType.F8E5M2,
        "F8_E8M0": DType.F8E8M0FNU,
        "I64": DType.I64,
        "I32": DType.I32,
        "I16": DType.I16,
        "I8": DType.I8,
        "U8": DType.U8,
        "BOOL": DType.BOOL,
    }
)
"""Dtypes by their names in headers: safetensors 0.5, `Dtype`."""


def find_safetensors(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a checkpoint's folder, sorted."""
    return tuple(sorted(folder.glob("*.safetensors")))


def read_headers(files: Iterable[Path]) -> Sources:
    """Read names, dtypes and shapes from the headers of safetensors files; no weight is read.

    Raises:
        DiagnosticError: TS857, a file cannot be read, a dtype has no name here, or a tensor is in
            two files.
    """
    found: dict[str, tuple[DType, Ints]] = {}
    for file in files:
        for name, dtype, shape in _header(file):
            if name in found:
                raise _unreadable(file, f"{name!r} is in another file as well")
            if dtype not in _SAFETENSORS:
                raise _unreadable(file, f"{name!r} has the dtype {dtype}")
            found[name] = _SAFETENSORS[dtype], shape
    return found


def _header(file: Path) -> Iterator[tuple[str, str, Ints]]:
    # Installed where checkpoints are: with the framework, not with tranship.
    opened: Any = import_module("safetensors").safe_open
    try:
        with opened(file, framework="pt") as tensors:
            for name in tensors.keys():
                one = tensors.get_slice(name)
                yield name, str(one.get_dtype()), tuple(one.get_shape())
    except Exception as error:  # the library raises one of its own, and OSError
        raise _unreadable(file, f"{error}") from error


def _unreadable(file: Path, reason: str) -> DiagnosticError:
    message = f"the tensors of a checkpoint cannot be told: {reason}"
    return DiagnosticError([Diagnostic("TS857", message, Location(str(file)))])


def on_meta(sources: Sources) -> dict[str, Tensor]:
    """Return the tensors on the meta device, where they have no memory."""
    return {
        name: torch.empty(shape, dtype=torch_dtype(dtype), device="meta")
        for name, (dtype, shape) in sources.items()
    }

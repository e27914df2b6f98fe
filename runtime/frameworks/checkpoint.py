"""A checkpoint in safetensors files as a sender of one rank: for a cold start, and as an oracle.

To declare it its headers are read; to send it its files are mapped into memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tranship.runtime.bind import location
from tranship.runtime.frameworks.tracing.scales import SCALE_SUFFIX, misfit
from tranship.runtime.frameworks.tracing.sources import Sources, find_safetensors, read_headers
from tranship.runtime.live import LiveTensor
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.dtypes import CODE_DTYPES
from tranship.schema.manifest import Framework, Kind, Part, Side
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    Ints,
    PieceRecord,
    QuantizationRecord,
    TensorRecord,
    contiguous_strides,
)


def checkpoint_declaration(
    sources: Sources, *, method: str | None = None, block: Ints | None = None
) -> Declaration:
    """Declare all tensors of a checkpoint, as one sender rank that holds them whole.

    A tensor whose name ends in `_scale_inv` holds the scales of the tensor that is named before.

    Args:
        sources: Dtype and shape of every tensor, as `read_headers` gives them.
        method: Name of the quantization, such as `fp8-block128`, if some are quantized.
        block: Rows and columns that share a scale.

    Raises:
        DiagnosticError: TS852, codes without scales or scales without codes, or scales that are
            not one per block.
    """
    findings = list(_unpaired(sources, block))
    if findings:
        raise DiagnosticError(findings)
    plain = {
        name.rpartition(".")[0]
        for name, (_, shape) in sources.items()
        if len(shape) > 1 and not _has_scales(name, sources) and not name.endswith(SCALE_SUFFIX)
    }
    return Declaration(
        side=Side.SENDER,
        world_size=1,
        ranks=(0,),
        axes=(),
        tensors=tuple(
            TensorRecord(name, shape)
            for name, (_, shape) in sorted(sources.items())
            if not name.endswith(SCALE_SUFFIX)
        ),
        buffers=tuple(_buffer(name, sources, block) for name in sorted(sources)),
        framework=Framework(name="checkpoint"),
        quantization=QuantizationRecord(method, tuple(sorted(plain))) if method else None,
    )


def map_checkpoint(folder: Path) -> dict[str, LiveTensor]:
    """Map the tensors of a folder's safetensors files; a weight is read when it is packed.

    Raises:
        DiagnosticError: TS857, a file cannot be read.
    """
    files = find_safetensors(folder)
    # What cannot be declared is not mapped, and told in the same way.
    read_headers(files)
    tensors = dict(_mapped(files))
    held = _Held()
    vars(held).update(tensors)
    return {
        name: LiveTensor(tensor, Kind.PARAMETER, held, (), name) for name, tensor in tensors.items()
    }


class _Held(nn.Module):
    """Holds tensors under their whole names."""


def _mapped(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    # Installed where checkpoints are: with the framework, not with tranship.
    opened: Any = import_module("safetensors").safe_open
    for file in files:
        with opened(file, framework="pt") as tensors:
            for name in tensors.keys():
                yield name, tensors.get_tensor(name)


def _has_scales(name: str, sources: Mapping[str, object]) -> bool:
    return name + SCALE_SUFFIX in sources


def _unpaired(sources: Sources, block: Ints | None) -> Iterator[Diagnostic]:
    where = location(Side.SENDER, 0)
    shapes = {name: shape for name, (_, shape) in sources.items()}
    for name, (dtype, _) in sources.items():
        if name.endswith(SCALE_SUFFIX):
            if message := misfit(name, shapes, block):
                yield Diagnostic("TS852", message, where)
        elif dtype in CODE_DTYPES and not _has_scales(name, sources):
            yield Diagnostic("TS852", f"{name} holds codes, and nothing holds their scales", where)


def _buffer(name: str, sources: Sources, block: Ints | None) -> BufferRecord:
    dtype, shape = sources[name]
    encoding, tensor, part = EncodingRecord(), name, Part.VALUE
    if name.endswith(SCALE_SUFFIX):
        tensor, part = name.removesuffix(SCALE_SUFFIX), Part.SCALE
        encoding = EncodingRecord("scale", of=tensor)
    elif _has_scales(name, sources):
        encoding = EncodingRecord("scaled", block or (), name + SCALE_SUFFIX, "any")
    strides, zeros, ones = contiguous_strides(shape), (0,) * len(shape), (1,) * len(shape)
    piece = PieceRecord(tensor, part, zeros, shape, ones, 0, strides, zeros)
    pieces = () if 0 in shape else (piece,)
    return BufferRecord(0, name, dtype, shape, strides, encoding=encoding, pieces=pieces)

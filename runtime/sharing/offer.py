"""What a process offers: which memory its tensors lie in, and how another process maps it."""

import secrets
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tranship.runtime.overlap import Span, has_memory, span
from tranship.runtime.sharing import cuda_calls
from tranship.runtime.sharing.cuda_calls import HANDLE_BYTES
from tranship.runtime.sharing.descriptors import closed_on_error
from tranship.runtime.sharing.exports import (
    ALLOCATE,
    Gap,
    Piece,
    Refusal,
    export,
    find_ranges,
    join,
)
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location, report_first
from tranship.schema.manifest import Frozen

_Bytes = Annotated[int, Field(ge=1, lt=2**63)]
_Offset = Annotated[int, Field(ge=0, lt=2**63)]
_Hex = rf"^[0-9a-f]{{{2 * HANDLE_BYTES}}}$"

_PROCESS = secrets.token_hex(16)


class Chunk(NamedTuple):
    """Physical memory with a file descriptor of its own; `identity` is never given to other."""

    size: _Bytes
    identity: Annotated[int, Field(ge=0, lt=2**64)]


class Region(NamedTuple):
    """Where a tensor lies: the number of an allocation, and bytes in it."""

    allocation: _Offset
    offset: _Offset
    length: _Bytes


class Allocation(Frozen):
    """Memory at successive addresses, of `size` bytes.

    Memory of cudaMalloc ("ipc") has a `handle`, the bytes of a `cudaIpcMemHandle_t` in hex. Mapped
    memory ("descriptors") has `chunks` in the order of their addresses.
    """

    kind: Literal["ipc", "descriptors"]
    size: _Bytes
    handle: Annotated[str, Field(pattern=_Hex)] | None = None
    chunks: tuple[Chunk, ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.kind == "ipc") != (self.handle is not None):
            raise ValueError("a handle goes with the kind 'ipc', and with no other")
        expected = self.size if self.kind == "descriptors" else 0
        if sum(chunk.size for chunk in self.chunks) != expected:
            raise ValueError(f"the chunks have not {expected} bytes together")
        return self


class Offer(Frozen):
    """The memory behind named tensors of one process on one GPU.

    Two offers are equal exactly if every mapping made from the first still is the memory of the
    second. Compare them before each use of a mapping: **a stale mapping reads old data without
    any error.** Measured on an H100 with torch 2.11 and CUDA 13.0:

    - After the memory was given back to the driver and allocated anew, at the same address, the
      mapping stayed readable and held the old contents. The new allocation had another handle.
    - A tensor freed and its block reused by another: the handle stays the same, and the mapping
      reads the new tensor's bytes. Then offers are equal: it is for the offering process to keep
      its tensors, and to name in `regions` what lies there now.

    **A handle authenticates nothing**: with one byte changed it still opened the same memory in 6
    of 8 tries. It is to be had from a channel whose peer was checked.

    `device` is the GPU's UUID. `process` is drawn at random by each process: neither handles nor
    identities are promised to differ between processes. `regions` are by name.
    """

    format: Literal["tranship.offer/1"] = "tranship.offer/1"
    process: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    device: Annotated[str, Field(min_length=1, max_length=64)]
    allocations: tuple[Allocation, ...]
    regions: dict[str, Region]

    @model_validator(mode="after")
    def _regions_lie_within(self) -> Self:
        for name, (number, offset, length) in self.regions.items():
            if number >= len(self.allocations):
                raise ValueError(f"{name!r} is in allocation {number}, which is not there")
            if offset + length > (size := self.allocations[number].size):
                raise ValueError(f"{name!r} ends {offset + length - size} bytes after its memory")
        return self


def make_offer(tensors: Mapping[str, Tensor], where: Location) -> tuple[Offer, list[int]]:
    """Offer the memory of `tensors`, which must lie on one GPU.

    Tensors without elements have no region. The descriptors are those of all chunks, in the order
    of the allocations: send them with the offer, and close them then.

    Args:
        tensors: Local tensors by name. What else lies in the same allocations is shared with them.
        where: The place of findings, as `tranship.runtime.bind.location` gives it.

    Raises:
        DiagnosticError: TS816, all tensors whose memory cannot be shared; TS818.
        OSError: more files would be open than this process may have.
        ValueError: no tensor has an element.
    """
    filled = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    if not filled:
        raise ValueError("an offer needs a tensor with elements")
    device = next((t.device for t in filled.values() if t.device.type == "cuda"), None)
    refusals = {name: _elsewhere(tensor, device) for name, tensor in filled.items()}
    refused = {name: refusal for name, refusal in refusals.items() if refusal}
    if device is None:
        raise _refusal(refused, where)
    spans = {name: span(tensor) for name, tensor in filled.items() if name not in refused}
    with cuda_calls.current(device) as ordinal, closed_on_error() as descriptors:
        runs, gaps = _export(spans.values(), descriptors)
        regions, inside = _regions(spans, runs, gaps)
        if refused or inside:
            raise _refusal(refused | inside, where)
        offer = Offer(
            process=_PROCESS,
            device=cuda_calls.device_uuids()[ordinal],
            allocations=tuple(map(_allocation, runs)),
            regions=regions,
        )
        return offer, descriptors


def _elsewhere(tensor: Tensor, device: torch.device | None) -> Refusal | None:
    """Say why the memory of `tensor` is none of the GPU `device`, or None if it is."""
    if not has_memory(tensor):
        return Refusal(f"no memory of its own, as a {type(tensor).__name__}", ALLOCATE)
    if tensor.device.type != "cuda":
        return Refusal(f"memory of the device {tensor.device}", "move the tensor to the GPU")
    if tensor.device != device:
        return Refusal(f"memory of {tensor.device}", f"offer it apart from that of {device}")
    return None


def _export(spans: Iterable[Span], descriptors: list[int]) -> tuple[list[list[Piece]], list[Gap]]:
    ranges, unknown = find_ranges(spans)
    pieces, sealed = export(ranges, descriptors)
    return join(pieces), unknown + sealed


def _regions(
    spans: Mapping[str, Span], runs: Sequence[Sequence[Piece]], gaps: Sequence[Gap]
) -> tuple[dict[str, Region], dict[str, Refusal]]:
    """Say where in the runs each span lies, or why it does not."""
    bases = [run[0].base for run in runs]
    regions: dict[str, Region] = {}
    refused: dict[str, Refusal] = {}
    for name, (start, end) in spans.items():
        number = bisect_right(bases, start) - 1
        if number >= 0 and end <= runs[number][-1].end:
            regions[name] = Region(number, start - bases[number], end - start)
        else:
            # A tensor is in one allocation, or in chunks back to back: some of it was not exported.
            refused[name] = next(gap.refusal for gap in gaps if gap.base < end and start < gap.end)
    return regions, refused


def _allocation(run: Sequence[Piece]) -> Allocation:
    size = sum(piece.size for piece in run)
    if (handle := run[0].handle) is not None:
        return Allocation(kind="ipc", size=size, handle=handle.hex())
    chunks = tuple(Chunk(piece.size, piece.identity) for piece in run)
    return Allocation(kind="descriptors", size=size, chunks=chunks)


def _refusal(refused: Mapping[str, Refusal], where: Location) -> DiagnosticError:
    def report(found: tuple[str, Refusal]) -> Diagnostic:
        name, refusal = found
        message = f"{name!r} lies in {refusal.memory}"
        return Diagnostic("TS816", message, where, help=refusal.advice)

    return DiagnosticError(report_first(list(refused.items()), report, where.file))

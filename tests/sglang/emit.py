"""Turn the trace of one rank's `load_weights` into that rank's declaration."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tests.sglang.boxes import View, boxes, memory_shape, overlapping
from tests.sglang.tracer import Filling, Trace, Write, aliases
from tranship.runtime.dtypes import schema_dtype
from tranship.runtime.live import LiveTensor
from tranship.schema.dtypes import CODE_DTYPES
from tranship.schema.manifest import Axis, Framework, Part, Side
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    Ints,
    PieceRecord,
    RoleRecord,
    TensorRecord,
)

SCALE_SUFFIX = "_scale_inv"
"""What a checkpoint appends to a weight's name to name the weight's block scales."""

CONSTANTS = {"cos_sin_cache": "rotary tables follow from the model's configuration"}
"""Why no update changes a buffer, by the last part of its name."""


class EmitError(RuntimeError):
    """A trace does not account for every element of every tensor that the model holds."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Whose declaration it is: a rank of a framework's world."""

    framework: Framework
    world_size: int
    axes: tuple[Axis, ...]
    rank: int


def declare(
    engine: Engine,
    live: Mapping[str, LiveTensor],
    trace: Trace,
    checkpoint: Mapping[str, torch.Tensor],
    block: Ints,
) -> Declaration:
    """Declare a rank's tensors, and how the checkpoint's tensors lie in them.

    Args:
        engine: The rank.
        live: Every tensor that the rank's model holds, by name.
        trace: What the model's `load_weights` did with the checkpoint.
        checkpoint: Every tensor of the checkpoint, scales included, on any device.
        block: Rows and columns of a quantization block.

    Raises:
        EmitError: an element of a tensor is written by nothing, or twice, or filled with a value
            other than 0 and 1; codes are held without their scales; or codes or scales are cast.
    """
    pieces = _pieces(live, trace)
    encodings = _encodings(live, pieces, checkpoint, block)
    originals = aliases(live)
    written = pieces.keys() | {filling.buffer for filling in trace.fillings}
    buffers = [
        BufferRecord(
            rank=engine.rank,
            name=name,
            dtype=schema_dtype(held.tensor.dtype),
            shape=tuple(held.tensor.shape),
            strides=held.tensor.stride(),
            kind=held.kind,
            role=_role(name, originals[name], written=name in written),
            encoding=encodings.get(name, EncodingRecord()),
            pieces=pieces.get(name, ()),
            fills=_fills(name, held.tensor, trace, pieces.get(name, ())),
        )
        for name, held in live.items()
    ]
    return Declaration(
        side=Side.RECEIVER,
        world_size=engine.world_size,
        ranks=(engine.rank,),
        axes=engine.axes,
        tensors=_tensors(checkpoint, block),
        buffers=tuple(sorted(buffers)),
        framework=engine.framework,
    )


def _tensors(checkpoint: Mapping[str, torch.Tensor], block: Ints) -> tuple[TensorRecord, ...]:
    """List the logical tensors; a scale is a part of its weight and no tensor of its own."""
    for name, scale in checkpoint.items():
        weight = checkpoint.get(name.removesuffix(SCALE_SUFFIX))
        if name.endswith(SCALE_SUFFIX) and (
            weight is None or tuple(scale.shape) != _grid(tuple(weight.shape), block)
        ):
            raise EmitError(f"{name} does not hold one scale per block of {block} of its weight")
    logical = [name for name in checkpoint if not name.endswith(SCALE_SUFFIX)]
    return tuple(sorted(TensorRecord(name, tuple(checkpoint[name].shape)) for name in logical))


def _grid(shape: Ints, block: Ints) -> Ints | None:
    if len(shape) != len(block):
        return None
    return tuple(-(-size // by) for size, by in zip(shape, block, strict=True))


def _pieces(live: Mapping[str, LiveTensor], trace: Trace) -> dict[str, tuple[PieceRecord, ...]]:
    pieces: dict[str, list[PieceRecord]] = defaultdict(list)
    for write in trace.writes:
        pieces[write.buffer].append(_piece(write, live[write.buffer].tensor.stride()))
    return {buffer: tuple(sorted(held)) for buffer, held in pieces.items()}


def _piece(write: Write, buffer_strides: Ints) -> PieceRecord:
    """Spell out a write; a dim of extent 1 gets the stride of the buffer's dim at its place."""
    box, rank = write.box, len(write.box.start)
    natural = ((0,) * rank + buffer_strides)[-rank:] if rank else ()
    is_scale = write.source.endswith(SCALE_SUFFIX)
    return PieceRecord(
        tensor=write.source.removesuffix(SCALE_SUFFIX),
        part=Part.SCALE if is_scale else Part.VALUE,
        start=box.start,
        extent=box.extent,
        step=box.step,
        offset=box.offset,
        strides=tuple(
            by if extent > 1 else default
            for by, extent, default in zip(box.strides, box.extent, natural, strict=True)
        ),
        origin=(0,) * rank,
    )


def _role(name: str, original: str, *, written: bool) -> RoleRecord:
    if original != name:
        return RoleRecord(kind="alias", of=original)
    if written:
        return RoleRecord()
    reason = CONSTANTS.get(name.rpartition(".")[2])
    if reason is None:
        raise EmitError(f"nothing writes {name}")
    return RoleRecord(kind="constant", reason=reason)


def _fills(
    name: str, tensor: torch.Tensor, trace: Trace, pieces: Sequence[PieceRecord]
) -> tuple[FillRecord, ...]:
    """List what is filled, having checked that pieces and fills write each element once."""
    fillings = [filling for filling in trace.fillings if filling.buffer == name]
    if not fillings and not pieces:
        return ()
    views = [View(piece.offset, piece.extent, piece.strides) for piece in pieces]
    views += [filling.view for filling in fillings]
    shape = memory_shape(tuple(tensor.shape), tensor.stride())
    found = [box for view in views for box in boxes(view, shape, view)]
    if overlapping(shape, found):
        raise EmitError(f"an element of {name} is written twice")
    if missing := math.prod(shape) - sum(box.size for box in found):
        raise EmitError(f"nothing writes {missing} of the elements of {name}")
    return tuple(sorted(_fill(filling) for filling in fillings))


def _fill(filling: Filling) -> FillRecord:
    view, value = filling.view, filling.value
    if value not in (0, 1):
        raise EmitError(f"{filling.buffer} is filled with {value}")
    return FillRecord(view.offset, view.sizes, view.strides, int(value))


def _encodings(
    live: Mapping[str, LiveTensor],
    pieces: Mapping[str, Sequence[PieceRecord]],
    checkpoint: Mapping[str, torch.Tensor],
    block: Ints,
) -> dict[str, EncodingRecord]:
    """Pair each buffer of codes with the buffer that holds the scales of the same tensors."""
    weights: dict[str, frozenset[str]] = {}
    scales: dict[frozenset[str], str] = {}
    for buffer, held in pieces.items():
        tensors = frozenset(piece.tensor for piece in held)
        parts = {piece.part for piece in held}
        if len(parts) > 1:
            raise EmitError(f"{buffer} holds values and scales")
        if Part.SCALE in parts:
            scales[tensors] = buffer
        else:
            weights[buffer] = tensors
    encodings: dict[str, EncodingRecord] = {}
    for buffer, tensors in weights.items():
        codes = live[buffer].tensor.dtype
        if schema_dtype(codes) in CODE_DTYPES or _scaled(tensors, checkpoint):
            scale = scales.pop(tensors, None)
            if scale is None:
                raise EmitError(f"{buffer} holds codes, and no buffer holds just their scales")
            encodings[buffer] = EncodingRecord("scaled", block, scale, "any")
            encodings[scale] = EncodingRecord("scale", of=buffer)
            _check_not_cast(codes, live[scale].tensor.dtype, tensors, checkpoint)
    if scales:
        raise EmitError(f"no buffer holds just the codes for {', '.join(scales.values())}")
    return encodings


def _scaled(tensors: Iterable[str], checkpoint: Mapping[str, torch.Tensor]) -> bool:
    return any(tensor + SCALE_SUFFIX in checkpoint for tensor in tensors)


def _check_not_cast(
    codes: torch.dtype,
    scales: torch.dtype,
    tensors: Iterable[str],
    checkpoint: Mapping[str, torch.Tensor],
) -> None:
    for tensor in tensors:
        stored = checkpoint[tensor].dtype, checkpoint[tensor + SCALE_SUFFIX].dtype
        if stored != (codes, scales):
            raise EmitError(f"{tensor} is cast from {stored} to {(codes, scales)}")

"""Turn the trace of one rank's `load_weights` into that rank's declaration."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from tranship.runtime.bind import location
from tranship.runtime.dtypes import schema_dtype
from tranship.runtime.frameworks.tracing.boxes import View, boxes, memory_shape, overlapping
from tranship.runtime.frameworks.tracing.scales import SCALE_SUFFIX, misfit
from tranship.runtime.frameworks.tracing.tracer import Filling, Trace, Write, aliases
from tranship.runtime.live import LiveTensor
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, report_first
from tranship.schema.dtypes import CODE_DTYPES
from tranship.schema.layouts import ROW_MAJOR
from tranship.schema.manifest import Axis, Framework, Part, Side
from tranship.schema.nearest import nearest
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    Ints,
    PieceRecord,
    QuantizationRecord,
    RoleRecord,
    TensorRecord,
)

CONSTANTS: Mapping[str, str] = {
    "cos_sin_cache": "rotary tables follow from the model's configuration",
    "inv_freq": "rotary tables follow from the model's configuration",
}
"""Why no update changes a buffer, by the last part of its name."""

POST_PROCESSING = "process_weights_after_loading"
"""What engines call the method of a layer that puts other tensors in place of those it loaded."""

_ONLY_BLOCKS = (
    "config.json names no blocks (quantization_config.weight_block_size), and a plan writes no"
    " other scales: serve BF16, or a checkpoint in FP8 by blocks"
)
"""What to do where an engine keeps codes with a scale per tensor, or per channel."""

Checkpoint = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Engine:
    """Whose declaration it is: a rank of a framework's world.

    `method` names the quantization, and `block` are the rows and columns that share a scale;
    `constants` are reasons as `CONSTANTS`; `derived` are the roles of what is made after loading;
    `layouts` are those that buffers have then, by name.
    """

    framework: Framework
    world_size: int
    axes: tuple[Axis, ...]
    rank: int
    method: str | None = None
    block: Ints | None = None
    constants: Mapping[str, str] = field(default_factory=lambda: CONSTANTS)
    derived: Mapping[str, RoleRecord] = field(default_factory=dict[str, RoleRecord])
    layouts: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model that has loaded a checkpoint: what it holds, where all came from, what is wrong."""

    engine: Engine
    live: Mapping[str, LiveTensor]
    trace: Trace
    checkpoint: Checkpoint
    pieces: Mapping[str, tuple[PieceRecord, ...]]
    problems: list[Diagnostic] = field(default_factory=list[Diagnostic])

    def report(self, code: str, message: str, advice: str | None = None) -> None:
        """Note a problem."""
        where = location(Side.RECEIVER, self.engine.rank)
        self.problems.append(Diagnostic(code, message, where, help=advice))


def declare(
    engine: Engine, live: Mapping[str, LiveTensor], trace: Trace, checkpoint: Checkpoint
) -> Declaration:
    """Declare a rank's tensors, and how the checkpoint's tensors lie in them.

    Args:
        engine: The rank.
        live: Every tensor that the rank's model holds, by name.
        trace: What the model's `load_weights` did with the checkpoint.
        checkpoint: Every tensor of the checkpoint, scales included, on any device.

    Raises:
        DiagnosticError: everything of which the trace does not account: TS850, nothing writes an
            element; TS851, it is written twice; TS852, codes are held without their scales, or the
            other way round; TS853, codes or scales are cast; TS854, a region is filled with a
            value other than 0 and 1.
    """
    loaded = _Loaded(engine, live, trace, checkpoint, _pieces(live, trace))
    tensors = tuple(sorted(_tensors(loaded)))
    encodings = _encodings(loaded)
    originals = aliases(live)
    buffers = [
        BufferRecord(
            rank=engine.rank,
            name=name,
            dtype=schema_dtype(held.tensor.dtype),
            shape=tuple(held.tensor.shape),
            strides=held.tensor.stride(),
            kind=held.kind,
            layout=engine.layouts.get(name, ROW_MAJOR),
            role=_role(loaded, name, originals[name]),
            encoding=encodings.get(name, EncodingRecord()),
            pieces=loaded.pieces.get(name, ()),
            fills=_fills(loaded, name),
        )
        for name, held in live.items()
    ]
    if loaded.problems:
        where = location(Side.RECEIVER, engine.rank).file
        raise DiagnosticError(report_first(loaded.problems, lambda found: found, where))
    return Declaration(
        side=Side.RECEIVER,
        world_size=engine.world_size,
        ranks=(engine.rank,),
        axes=engine.axes,
        tensors=tensors,
        buffers=tuple(sorted(buffers)),
        framework=engine.framework,
        quantization=quantization_of(engine.method, buffers),
    )


def quantization_of(
    method: str | None, buffers: Iterable[BufferRecord]
) -> QuantizationRecord | None:
    """Name the quantization, if there is one, and the modules whose matrices are held plainly."""
    if method is None:
        return None
    plain = {
        piece.tensor.rpartition(".")[0]
        for record in buffers
        if record.encoding.kind == "plain"
        for piece in record.pieces
        if len(piece.extent) > 1
    }
    return QuantizationRecord(method, tuple(sorted(plain)))


def _tensors(loaded: _Loaded) -> Iterator[TensorRecord]:
    """List the logical tensors; a scale is a part of its weight and no tensor of its own."""
    shapes = {name: tuple(tensor.shape) for name, tensor in loaded.checkpoint.items()}
    for name, shape in shapes.items():
        if not name.endswith(SCALE_SUFFIX):
            yield TensorRecord(name, shape)
        elif message := misfit(name, shapes, loaded.engine.block):
            loaded.report("TS852", message)


def _pieces(live: Mapping[str, LiveTensor], trace: Trace) -> dict[str, tuple[PieceRecord, ...]]:
    pieces: dict[str, list[PieceRecord]] = defaultdict(list)
    for write in trace.writes:
        pieces[write.buffer].append(_piece(write, live[write.buffer].tensor.stride()))
    return {buffer: tuple(sorted(held)) for buffer, held in pieces.items()}


def _piece(write: Write, buffer_strides: Ints) -> PieceRecord:
    box, rank = write.box, len(write.box.start)
    is_scale = write.source.endswith(SCALE_SUFFIX)
    return PieceRecord(
        tensor=write.source.removesuffix(SCALE_SUFFIX),
        part=Part.SCALE if is_scale else Part.VALUE,
        start=box.start,
        extent=box.extent,
        step=box.step,
        offset=box.offset,
        strides=piece_strides(box.strides, box.extent, buffer_strides),
        origin=(0,) * rank,
    )


def piece_strides(strides: Ints, extent: Ints, buffer_strides: Ints) -> Ints:
    """Spell out a piece's strides: a dim of extent 1 gets that of the buffer's dim at its place."""
    rank = len(extent)
    natural = ((0,) * rank + buffer_strides)[-rank:] if rank else ()
    steps = zip(strides, extent, natural, strict=True)
    return tuple(by if size > 1 else default for by, size, default in steps)


def _role(loaded: _Loaded, name: str, original: str) -> RoleRecord:
    if original != name:
        return RoleRecord(kind="alias", of=original)
    if name in loaded.trace.derived and name in loaded.pieces:
        loaded.report("TS851", f"{name} is written, and made of other buffers")
    if role := loaded.engine.derived.get(name) or loaded.trace.derived.get(name):
        return role
    filled = any(filling.buffer == name for filling in loaded.trace.fillings)
    if filled or name in loaded.pieces:
        return RoleRecord()
    if inputs := _loaded_beside(loaded, name):
        return RoleRecord(kind="derived", recipe=POST_PROCESSING, inputs=inputs)
    reason = loaded.engine.constants.get(name.rpartition(".")[2])
    if reason is None and not loaded.live[name].tensor.numel():
        return RoleRecord()
    if reason is None:
        loaded.report("TS850", f"nothing writes {name}", _unread(loaded, name))
    return RoleRecord(kind="constant", reason=reason or "")


def _loaded_beside(loaded: _Loaded, name: str) -> tuple[str, ...]:
    """Return what a module has loaded, of which the engine then makes its tensor `name`."""
    if name not in loaded.engine.layouts:
        return ()
    module = name.rpartition(".")[0]
    return tuple(sorted(each for each in loaded.pieces if each.rpartition(".")[0] == module))


def _unread(loaded: _Loaded, name: str) -> str | None:
    """Tell which tensors of a checkpoint nobody has read that look as if they were for `name`."""
    read = {write.source for write in loaded.trace.writes}
    module, _, last = name.rpartition(".")
    parent = module.rpartition(".")[0]
    left = [
        each
        for each in loaded.checkpoint.keys() - read
        if each.startswith(parent) and each.endswith(last)
    ]
    close = nearest(name, left)
    return f"the model has read none of {', '.join(close)} of the checkpoint" if close else None


def _fills(loaded: _Loaded, name: str) -> tuple[FillRecord, ...]:
    """List what is filled, and check that pieces and fills write each element once."""
    pieces = loaded.pieces.get(name, ())
    fillings = [filling for filling in loaded.trace.fillings if filling.buffer == name]
    if not fillings and not pieces:
        return ()
    tensor = loaded.live[name].tensor
    views = [View(piece.offset, piece.extent, piece.strides) for piece in pieces]
    views += [filling.view for filling in fillings]
    shape = memory_shape(tuple(tensor.shape), tensor.stride())
    found = [box for view in views for box in boxes(view, shape, view)]
    if overlapping(shape, found):
        loaded.report("TS851", f"an element of {name} is written twice")
    elif missing := math.prod(shape) - sum(box.size for box in found):
        message = f"nothing writes {missing:,} of the elements of {name}"
        loaded.report("TS850", message, _unread(loaded, name))
    return tuple(sorted(_fill(loaded, filling) for filling in fillings))


def _fill(loaded: _Loaded, filling: Filling) -> FillRecord:
    view, value = filling.view, filling.value
    if value not in (0, 1) or math.copysign(1, value) < 0:
        loaded.report("TS854", f"{filling.buffer} is filled with {value}")
        value = 0
    return FillRecord(view.offset, view.sizes, view.strides, int(value))


def _encodings(loaded: _Loaded) -> dict[str, EncodingRecord]:
    """Pair each buffer of codes with the buffer that holds the scales of the same tensors."""
    weights: dict[str, frozenset[str]] = {}
    scales: dict[frozenset[str], str] = {}
    for buffer, held in loaded.pieces.items():
        tensors = frozenset(piece.tensor for piece in held)
        parts = {piece.part for piece in held}
        if len(parts) > 1:
            loaded.report("TS852", f"{buffer} holds values and scales")
        elif Part.SCALE in parts:
            scales[tensors] = buffer
        else:
            weights[buffer] = tensors
    encodings: dict[str, EncodingRecord] = {}
    for buffer, tensors in weights.items():
        codes = loaded.live[buffer].tensor.dtype
        if schema_dtype(codes) not in CODE_DTYPES and not _scaled(loaded, tensors):
            continue
        scale = scales.pop(tensors, None)
        if scale is None or loaded.engine.block is None:
            message = f"{buffer} holds codes, and no buffer holds just their scales"
            loaded.report("TS852", message, None if loaded.engine.block else _ONLY_BLOCKS)
            continue
        encodings[buffer] = EncodingRecord("scaled", loaded.engine.block, scale, "any")
        encodings[scale] = EncodingRecord("scale", of=buffer)
        _check_not_cast(loaded, buffer, scale, tensors)
    for scale in scales.values():
        loaded.report("TS852", f"{scale} holds scales, and no buffer holds just their codes")
    return encodings


def _scaled(loaded: _Loaded, tensors: Iterable[str]) -> bool:
    return any(tensor + SCALE_SUFFIX in loaded.checkpoint for tensor in tensors)


def _check_not_cast(loaded: _Loaded, codes: str, scales: str, tensors: Iterable[str]) -> None:
    held = loaded.live[codes].tensor.dtype, loaded.live[scales].tensor.dtype
    for tensor in sorted(tensors):
        names = tensor, tensor + SCALE_SUFFIX
        stored = tuple(loaded.checkpoint[name].dtype for name in names if name in loaded.checkpoint)
        if stored != held:
            loaded.report("TS853", f"{tensor} is cast from {stored} to {held}")

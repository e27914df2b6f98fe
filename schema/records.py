"""Explicit declarations: one record per logical tensor, and one per buffer on one rank.

A manifest in families and its records say the same (`expand.py` and `fold.py` go from one to
the other). Frameworks and tracers emit records; nothing else does.
"""

from dataclasses import dataclass, field

from tranship.schema.dtypes import DType
from tranship.schema.manifest import Axis, Framework, Kind, Part, Side

Ints = tuple[int, ...]
BlockShape = tuple[int | str, ...]


@dataclass(frozen=True, slots=True, order=True)
class TensorRecord:
    """One logical tensor: its checkpoint name, global shape, and the tensor it is tied to."""

    name: str
    shape: Ints
    tied_to: str = ""


@dataclass(frozen=True, slots=True, order=True)
class PieceRecord:
    """A box of a tensor in a buffer; fields as in `manifest.Piece`, all spelled out.

    `start`, `extent`, `step`, `strides` and `origin` have one entry per tensor dim.
    """

    tensor: str
    part: Part
    start: Ints
    extent: Ints
    step: Ints
    offset: int
    strides: Ints
    origin: Ints


@dataclass(frozen=True, slots=True, order=True)
class FillRecord:
    """A region without a logical tensor: `value` is written, or (value -1) `reason` excuses it."""

    offset: int
    sizes: Ints
    strides: Ints
    value: int = -1
    reason: str = ""


@dataclass(frozen=True, slots=True, order=True)
class EncodingRecord:
    """How values are stored: kind `plain`, `scaled` or `scale`, with names filled in."""

    kind: str = "plain"
    block: BlockShape = ()
    scale: str = ""
    scale_values: str = ""
    of: str = ""


@dataclass(frozen=True, slots=True, order=True)
class RoleRecord:
    """What may happen to a buffer: kind `transfer`, `derived`, `constant` or `alias`."""

    kind: str = "transfer"
    recipe: str = ""
    inputs: tuple[str, ...] = ()
    reason: str = ""
    of: str = ""


@dataclass(frozen=True, slots=True, order=True)
class BufferRecord:
    """One buffer on one rank. `strides` and all offsets count elements of `dtype`."""

    rank: int
    name: str
    dtype: DType
    shape: Ints
    strides: Ints
    kind: Kind = Kind.PARAMETER
    role: RoleRecord = RoleRecord()
    encoding: EncodingRecord = EncodingRecord()
    layout: str = "row_major"
    pieces: tuple[PieceRecord, ...] = ()
    fills: tuple[FillRecord, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class QuantizationRecord:
    """How weights are quantized, and the names of the modules that are not, sorted."""

    method: str
    unquantized: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Declaration:
    """The explicit form of a manifest: all tensors, and all buffers of the ranks it speaks for.

    `tensors` and `buffers` are sorted; `ranks` is sorted.
    """

    side: Side
    world_size: int
    ranks: Ints
    axes: tuple[Axis, ...]
    tensors: tuple[TensorRecord, ...]
    buffers: tuple[BufferRecord, ...]
    framework: Framework | None = field(default=None)
    quantization: QuantizationRecord | None = None


def contiguous_strides(shape: Ints) -> Ints:
    """Row-major strides of `shape`, in elements: (3, 4, 5) gives (20, 5, 1)."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))

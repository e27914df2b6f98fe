"""A random transfer before it is written down: what is held, on which meshes, in which form.

A case is data only. `records.py` declares what it says, buffer by buffer.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal

from tranship.schema.dtypes import DType, widens
from tranship.schema.formulas import FormulaName
from tranship.schema.records import BlockShape, Ints

Placement = int | Literal["strided"] | None
"""On one mesh axis: a dim to shard, "strided" (every n-th row of dim 0), or None to replicate."""

Storage = Literal["plain", "transposed", "padded", "halves"]
"""How a shard lies in its buffer. "halves": dim 0 in two pieces, in reverse order."""

Extra = Literal["derived", "alias", "constant"]
"""A kind of buffer besides those that take part."""

UNUSED_TENSOR = "mtp.norm.weight"
"""What a sender holds and nobody takes, in cases that have such a tensor."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what is drawn: ranks per side, tensors per layer, layers."""

    ranks: int = 8
    tensors: int = 3
    layers: int = 3

    def __post_init__(self) -> None:
        if min(self.ranks, self.tensors, self.layers) < 1:
            raise ValueError("a manifest has at least one rank, one tensor and one layer")


@dataclass(frozen=True)
class LogicalTensor:
    """Logical tensors `model.layers.{layer}.NAME.weight`, one per layer, all of one shape.

    `tied_to` is the name of another tensor whose value these have; the sender holds the other.
    """

    name: str
    shape: Ints
    tied_to: str = ""

    def fqn(self, layer: int) -> str:
        """Name the tensor of one layer."""
        return f"model.layers.{layer}.{self.name}.weight"


@dataclass(frozen=True)
class Encoding:
    """`block` None is plain; else codes of `dtype` with scales of `scale_dtype`."""

    dtype: DType
    block: BlockShape | None = None
    scale_dtype: DType = DType.F32


@dataclass(frozen=True)
class Holding:
    """How one side holds one tensor.

    `placements` has an entry per mesh axis; with `joint` a single one, for the axis over all
    ranks of a stage (as experts lie over the ranks that share attention).
    """

    placements: tuple[Placement, ...]
    storage: Storage
    encoding: Encoding
    joint: bool = False


@dataclass(frozen=True)
class SideCase:
    """One side: mesh axes behind the pipeline axis, each layer's stage, every tensor's holding.

    `fused` puts all tensors of equal trailing shape and encoding in one buffer per layer.
    """

    stages: int
    stage_of: Ints
    mesh: Ints
    holdings: tuple[Holding, ...]
    fused: bool = False
    extras: tuple[Extra, ...] = ()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.stages * prod(self.mesh)


@dataclass(frozen=True)
class Case:
    """A whole transfer. With `has_unused` the sender holds a tensor that nobody takes."""

    tensors: tuple[LogicalTensor, ...]
    layers: int
    sender: SideCase
    receiver: SideCase
    formula: FormulaName
    staging_bytes: int
    seed: int
    has_unused: bool = False


def lossy_edge(
    sender: Encoding, receiver: Encoding
) -> Literal["cast", "dequantize", "requantize"] | None:
    """Return what a policy must allow between two encodings; None where nothing is lost."""
    if sender.block is None and receiver.block is None:
        return None if widens(sender.dtype, receiver.dtype) else "cast"
    if receiver.block is None:
        return "dequantize"
    return "requantize" if sender.block is not None and sender != receiver else None

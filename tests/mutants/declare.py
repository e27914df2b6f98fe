"""Manifests in a few words, for cases."""

from dataclasses import dataclass

from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    Axis,
    BufferFamily,
    IntExpression,
    Manifest,
    Part,
    Piece,
    Scale,
    Scaled,
    Side,
    TensorFamily,
)
from tranship.schema.placement import Placement
from tranship.schema.policy import Policy
from tranship.schema.transfer import Options

Ints = tuple[int, ...]
Exprs = tuple[IntExpression, ...]


SMALL = Options(staging_bytes=4096)
"""The least staging memory that can be asked for, so that small cases take several rounds."""


@dataclass(frozen=True)
class Case:
    """Everything that a plan is compiled from."""

    name: str
    sender: Manifest
    receiver: Manifest
    policy: Policy | None = None
    placement: Placement | None = None
    options: Options = SMALL


def manifest(
    side: Side,
    world_size: int,
    axes: dict[str, tuple[int, int]],
    tensors: tuple[TensorFamily, ...],
    buffers: tuple[BufferFamily, ...],
    tables: dict[str, Ints] | None = None,
) -> Manifest:
    """A manifest; `axes` are sizes and strides by name."""
    return Manifest(
        format="tranship.manifest/1",
        side=side,
        world_size=world_size,
        axes=tuple(Axis(name=n, size=size, stride=stride) for n, (size, stride) in axes.items()),
        tables=tables or {},
        tensors=tensors,
        buffers=buffers,
    )


def plain(name: str, dtype: DType, shape: Exprs, start: Exprs, **more: object) -> BufferFamily:
    """A buffer that holds one box of the tensor of its own name."""
    return BufferFamily.model_validate(
        {
            "name": name,
            "dtype": dtype,
            "shape": shape,
            "pieces": (Piece(tensor=name, start=start, extent=shape),),
            **more,
        }
    )


def scaled(
    name: str,
    shape: Exprs,
    start: Exprs,
    block: Ints,
    scale_shape: Exprs,
    scale_start: Exprs,
    *,
    origin: Exprs | None = None,
    scale_dtype: DType = DType.F32,
    powers: bool = False,
    indices: dict[str, str] | None = None,
) -> tuple[BufferFamily, BufferFamily]:
    """A buffer of FP8 codes, and the buffer of its scales."""
    scale = f"{name}_scale_inv"
    values = Piece(tensor=name, start=start, extent=shape, origin=origin)
    scales = Piece(
        tensor=name, part=Part.SCALE, start=scale_start, extent=scale_shape, origin=origin
    )
    accepted = "power_of_two" if powers else "any"
    return (
        BufferFamily(
            name=name,
            indices=indices or {},
            dtype=DType.F8E4M3FN,
            shape=shape,
            encoding=Scaled(kind="scaled", block=block, scale=scale, scale_values=accepted),
            pieces=(values,),
        ),
        BufferFamily(
            name=scale,
            indices=indices or {},
            dtype=scale_dtype,
            shape=scale_shape,
            encoding=Scale(kind="scale", of=name),
            pieces=(scales,),
        ),
    )

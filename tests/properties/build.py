"""The memory that a random case declares, and what the receivers must hold afterwards.

The declaration is that of `tranship.schema.testing`, and every shard in it is compared with torch
DTensor's own arithmetic. Values and scales are plain slices of the dense tensors: nothing here uses
the compiler, the runtime or the region algebra.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import (
    _compute_local_shape_and_global_offset,  # pyright: ignore[reportPrivateUsage] -- the oracle
)

from tests.properties.dense import Dense, torch_dtype
from tranship.schema.manifest import Part, Side
from tranship.schema.records import BufferRecord, Declaration, Ints
from tranship.schema.testing import Case, Holding, SideCase, declaration_of

Boxes = Counter[tuple[int, str, Ints]]
"""How many elements with one rank, tensor and element a side holds: each at most once."""


@dataclass(frozen=True)
class Built:
    """One side's declaration, and its memory by rank and buffer name."""

    declaration: Declaration
    memory: dict[int, dict[str, torch.Tensor]]


def build(case: Case, side: Side, dense: Dense) -> Built:
    """Declare one side, with its memory as the dense tensors say: sent, or to be received."""
    declaration = declaration_of(case, side)
    memory: dict[int, dict[str, torch.Tensor]] = {rank: {} for rank in declaration.ranks}
    for record in declaration.buffers:
        if record.role.kind == "transfer":
            memory[record.rank][record.name] = _fill(record, dense, side)
    for record in declaration.buffers:
        if record.role.kind == "derived":
            source = memory[record.rank][record.role.inputs[0]]
            made = torch.empty_strided(record.shape, record.strides, dtype=torch.float32)
            memory[record.rank][record.name] = made
            widen(made, source)
    return Built(declaration, memory)


def widen(target: torch.Tensor, source: torch.Tensor) -> None:
    """Compute the random cases' derived buffers: the recipe of that name."""
    target.copy_(source)


def held_elements(case: Case, side: Side) -> tuple[Boxes, Boxes]:
    """What the declaration says that each rank holds, and what DTensor says, per element."""
    own = case.sender if side is Side.SENDER else case.receiver
    declared, expected = Boxes(), Boxes()
    for record in declaration_of(case, side).buffers:
        for piece in record.pieces:
            if piece.part is Part.VALUE:
                axes = zip(piece.start, piece.extent, piece.step, strict=True)
                grid = [range(a, a + n * k, k) for a, n, k in axes]
                declared.update((record.rank, piece.tensor, e) for e in _elements(grid))
    for rank in range(own.world_size):
        stage, position = divmod(rank, prod(own.mesh))
        for tensor, holding in zip(case.tensors, own.holdings, strict=True):
            if side is Side.SENDER and tensor.tied_to:
                continue
            elements = list(_elements(dtensor_shard(tensor.shape, own, position, holding)))
            for layer in range(case.layers):
                if own.stage_of[layer] == stage:
                    expected.update((rank, tensor.fqn(layer), element) for element in elements)
    return declared, expected


def _elements(grid: list[range]) -> list[Ints]:
    """Every combination of the members of some ranges."""
    points: list[Ints] = [()]
    for members in grid:
        points = [(*point, member) for point in points for member in members]
    return points


def dtensor_shard(shape: Ints, own: SideCase, position: int, holding: Holding) -> list[range]:
    """The rank's rows of each dim by DTensor's arithmetic, or every n-th row."""
    mesh = (prod(own.mesh),) if holding.joint else own.mesh
    coordinate = coordinate_of(mesh, position)
    if "strided" in holding.placements:
        return [range(coordinate[0], shape[0], mesh[0]), *(range(size) for size in shape[1:])]
    placements = [Replicate() if p is None else Shard(int(p)) for p in holding.placements]
    extent, start = _compute_local_shape_and_global_offset(
        shape, mesh, list(coordinate), placements
    )
    return [range(first, first + size) for first, size in zip(start, extent, strict=True)]


def coordinate_of(mesh: Ints, number: int) -> Ints:
    """Row-major coordinate of a position in the mesh."""
    result: list[int] = []
    for size in reversed(mesh):
        result.append(number % size)
        number //= size
    return tuple(reversed(result))


def _fill(record: BufferRecord, dense: Dense, side: Side) -> torch.Tensor:
    """Memory of a buffer with every piece sliced out of the dense tensors."""
    size = 1 + sum((n - 1) * s for n, s in zip(record.shape, record.strides, strict=True))
    storage = torch.full((max(size, 0) * 8 + 8,), 0xA5, dtype=torch.uint8)
    dtype = torch_dtype(record.dtype)
    flat = storage[: storage.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
    buffer = torch.as_strided(flat, record.shape, record.strides)
    for piece in record.pieces:
        view = torch.as_strided(flat, piece.extent, piece.strides, piece.offset)
        index = tuple(
            slice(a, a + (n - 1) * k + 1, k)
            for a, n, k in zip(piece.start, piece.extent, piece.step, strict=True)
        )
        source = (
            dense.scales(piece.tensor, side)
            if piece.part is Part.SCALE
            else dense.values(piece.tensor, side)
        )
        view.copy_(source[index])
    for fill in record.fills:
        if fill.value >= 0:
            torch.as_strided(flat, fill.sizes, fill.strides, fill.offset).fill_(fill.value)
    return buffer

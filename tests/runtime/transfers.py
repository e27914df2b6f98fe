"""Two transfers with oracles in plain torch: one that copies BF16, and one that quantizes to FP8.

In both, two senders hold the rows of every weight in halves, as FSDP cuts them, and two receivers
hold columns. Values follow from the version, so that every process can make them by itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.properties.dense import quantize
from tests.runtime.live_models import model_of
from tranship.compiler.pipeline import compile_transfer
from tranship.runtime.execute import Recipe
from tranship.runtime.live import local_tensor
from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    Axis,
    BufferFamily,
    ConstantBuffer,
    Derived,
    Kind,
    Manifest,
    Part,
    Piece,
    Scale,
    Scaled,
    Side,
    TensorFamily,
)
from tranship.schema.plan import TransferPlan
from tranship.schema.testing import Encoding
from tranship.schema.transfer import Options

UP, NORM = "model.layers.{layer}.up.weight", "model.norm.weight"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Transfer:
    """A compiled transfer between two senders and two receivers, and what it must deliver."""

    sender: Manifest
    receiver: Manifest
    plan: TransferPlan
    rows: int
    columns: int
    expect: Callable[["Transfer", int, int], Tensors]
    recipes: Mapping[str, Recipe]
    parts: int = 2
    layers: int = 3

    def dense(self, version: int) -> Tensors:
        """All logical tensors of a version."""
        generator = torch.Generator().manual_seed(version)
        shapes: dict[str, tuple[int, ...]] = {
            UP.format(layer=n): (self.rows, self.columns) for n in range(self.layers)
        }
        shapes[NORM] = (self.columns,)
        return {
            name: torch.randn(shape, generator=generator).bfloat16()
            for name, shape in shapes.items()
        }

    def train(self, model: nn.Module, rank: int, version: int) -> None:
        """Put a version of the weights into a sender's model, in place."""
        half = self.rows // self.parts
        with torch.no_grad():
            for name, value in self.dense(version).items():
                part = value if name == NORM else value[rank * half : (rank + 1) * half]
                model.get_parameter(name).copy_(part)

    def expected(self, rank: int, version: int) -> Tensors:
        """What a receiver must hold after an update, but for constants."""
        return self.expect(self, rank, version)

    def wrong(self, model: nn.Module, rank: int, version: int) -> list[str]:
        """Return the names of a receiver's tensors that differ from what they must be."""
        return [
            name
            for name, value in self.expected(rank, version).items()
            if not torch.equal(_bytes(_find(model, name)), _bytes(value))
        ]

    def models(self, side: Side, device: str = "cpu") -> list[nn.Module]:
        """New models of both ranks of a side."""
        manifest = self.sender if side is Side.SENDER else self.receiver
        return [model_of(manifest, rank, device) for rank in range(self.parts)]


def _find(model: nn.Module, name: str) -> Tensor:
    module, _, key = name.rpartition(".")
    return local_tensor(getattr(model.get_submodule(module), key))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def _side(
    rows: int,
    columns: int,
    side: Side,
    buffers: tuple[BufferFamily, ...],
    parts: int,
    layers: int = 3,
) -> Manifest:
    return Manifest(
        format="tranship.manifest/1",
        side=side,
        world_size=parts,
        axes=(Axis(name="part", size=parts, stride=1),),
        tensors=(
            TensorFamily(name=UP, indices=_layers(layers), shape=(rows, columns)),
            TensorFamily(name=NORM, shape=(columns,)),
        ),
        buffers=buffers,
    )


def _layers(count: int) -> dict[str, str]:
    return {"layer": f"0..{count - 1}"}


def _norm(columns: int) -> BufferFamily:
    whole = Piece(tensor=NORM, start=(0,), extent=(columns,))
    return BufferFamily(name=NORM, dtype=DType.BF16, shape=(columns,), pieces=(whole,))


def _sender(rows: int, columns: int, parts: int, layers: int = 3) -> Manifest:
    half = rows // parts
    piece = Piece(tensor=UP, start=(f"part * {half}", 0), extent=(half, columns))
    up = BufferFamily(
        name=UP, indices=_layers(layers), dtype=DType.BF16, shape=(half, columns), pieces=(piece,)
    )
    return _side(rows, columns, Side.SENDER, (up, _norm(columns)), parts, layers)


# --- BF16: a transposed copy, a derived attribute and a constant ----------------------------------

TOTAL = "model.layers.{layer}.total"


def _add_up(total: Tensor, up: Tensor) -> None:
    total.copy_(up.double().sum(dim=1))


def _copied(transfer: Transfer, rank: int, version: int) -> Tensors:
    dense, half = transfer.dense(version), transfer.columns // transfer.parts
    found = {NORM: dense[NORM]}
    for layer in range(transfer.layers):
        columns = dense[UP.format(layer=layer)][:, rank * half : (rank + 1) * half]
        found[UP.format(layer=layer)] = columns.T
        found[TOTAL.format(layer=layer)] = columns.T.double().sum(dim=1)
    return found


def bf16_transfer(parts: int = 2) -> Transfer:
    """A copy in more rounds than there are slots."""
    rows, columns = 40, 36
    half = columns // parts
    piece = Piece(tensor=UP, start=(0, f"part * {half}"), extent=(rows, half), strides=(1, rows))
    up = BufferFamily(
        name=UP, indices=_layers(3), dtype=DType.BF16, shape=(half, rows), pieces=(piece,)
    )
    total = BufferFamily(
        name=TOTAL,
        indices=_layers(3),
        dtype=DType.F64,
        shape=(half,),
        kind=Kind.ATTRIBUTE,
        role=Derived(kind="derived", recipe="add_up", inputs=(UP,)),
    )
    rotary = BufferFamily(
        name="model.rotary",
        dtype=DType.F32,
        shape=(4,),
        kind=Kind.BUFFER,
        role=ConstantBuffer(kind="constant", reason="computed from the configuration"),
    )
    sender = _sender(rows, columns, parts)
    receiver = _side(rows, columns, Side.RECEIVER, (up, _norm(columns), total, rotary), parts)
    plan = compile_transfer(sender, receiver, options=Options(staging_bytes=4096))
    return Transfer(sender, receiver, plan, rows, columns, _copied, {"add_up": _add_up}, parts)


# --- FP8: blocks of 128 x 128, in part cut by the senders' shards ---------------------------------

SCALE = "model.layers.{layer}.up.weight_scale_inv"
BLOCK = 128


def _quantized(transfer: Transfer, rank: int, version: int) -> Tensors:
    dense, half = transfer.dense(version), transfer.columns // transfer.parts
    found = {NORM: dense[NORM]}
    for layer in range(transfer.layers):
        encoding = Encoding(DType.F8E4M3FN, (BLOCK, BLOCK), DType.F32)
        codes, scales = quantize(dense[UP.format(layer=layer)], encoding, "divide")
        found[UP.format(layer=layer)] = codes[:, rank * half : (rank + 1) * half]
        blocks = half // BLOCK
        found[SCALE.format(layer=layer)] = scales[:, rank * blocks : (rank + 1) * blocks]
    return found


def fp8_transfer(parts: int = 2, layers: int = 3) -> Transfer:
    """Two senders hold 192 rows each, so that the middle row of blocks is cut.

    The number of rounds does not depend on the number of layers.
    """
    rows, columns = 384, 256
    half, blocks = columns // parts, columns // parts // BLOCK
    codes = Piece(tensor=UP, start=(0, f"part * {half}"), extent=(rows, half))
    scales = Piece(
        tensor=UP, part=Part.SCALE, start=(0, f"part * {blocks}"), extent=(rows // BLOCK, blocks)
    )
    up = BufferFamily(
        name=UP,
        indices=_layers(layers),
        dtype=DType.F8E4M3FN,
        shape=(rows, half),
        encoding=Scaled(kind="scaled", block=(BLOCK, BLOCK), scale=SCALE),
        pieces=(codes,),
    )
    scale = BufferFamily(
        name=SCALE,
        indices=_layers(layers),
        dtype=DType.F32,
        shape=(rows // BLOCK, blocks),
        encoding=Scale(kind="scale", of=UP),
        pieces=(scales,),
    )
    sender = _sender(rows, columns, parts, layers)
    buffers = (up, scale, _norm(columns))
    receiver = _side(rows, columns, Side.RECEIVER, buffers, parts, layers)
    plan = compile_transfer(sender, receiver, options=Options(staging_bytes=layers * 87040))
    return Transfer(sender, receiver, plan, rows, columns, _quantized, {}, parts, layers)

"""What a declaration says of small models, and what it refuses to leave unsaid."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import nn

from tranship.runtime.frameworks.tracing.declare import Engine, declare
from tranship.runtime.frameworks.tracing.tracer import trace_load
from tranship.runtime.live import live_tensors
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Axis, Framework, Kind, Part
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    PieceRecord,
    RoleRecord,
    TensorRecord,
)

FP8 = torch.float8_e4m3fn
BLOCK = (2, 2)
AXES = (Axis(name="tp", size=2, stride=1),)
ENGINE = Engine(Framework(name="toy"), 2, AXES, rank=1, block=BLOCK)

CHECKPOINT = {
    "gate.weight": torch.empty((3, 4), dtype=FP8, device="meta"),
    "gate.weight_scale_inv": torch.empty((2, 2), device="meta"),
    "up.weight": torch.empty((3, 4), dtype=FP8, device="meta"),
    "up.weight_scale_inv": torch.empty((2, 2), device="meta"),
    "norm.weight": torch.empty(4, dtype=torch.bfloat16, device="meta"),
}

CODES = ("gate.weight", "up.weight", "norm.weight")


class Fused(nn.Module):
    """Holds experts of one gate and one up projection each, with scales, and a padded norm."""

    codes, scales = FP8, torch.float32
    padding: float = 0
    skipped: frozenset[str] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty((1, 6, 4), dtype=self.codes, device="meta"), requires_grad=False
        )
        self.weight_scale_inv = nn.Parameter(
            torch.empty((1, 4, 2), dtype=self.scales, device="meta"), requires_grad=False
        )
        self.norm = nn.Parameter(torch.empty(6, dtype=torch.bfloat16, device="meta"))
        self.tied = self.norm
        self.register_buffer("cos_sin_cache", torch.empty(8, device="meta"))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        rows = {"gate": slice(0, 3), "up": slice(3, 6)}
        scale_rows = {"gate": slice(0, 2), "up": slice(2, 4)}
        for name, tensor in weights:
            part = name.partition(".")[0]
            if name in self.skipped:
                continue
            if part == "norm":
                self.norm.data[:4].copy_(tensor)
                self.norm.data[4:].fill_(self.padding)
            elif name.endswith("_scale_inv"):
                self.weight_scale_inv.data[0, scale_rows[part]].copy_(tensor)
            else:
                self.weight.data[0, rows[part]].copy_(tensor)


def declaration(model: nn.Module, checkpoint: dict[str, torch.Tensor]) -> Declaration:
    trace = trace_load(model, checkpoint)
    return declare(ENGINE, live_tensors(model), trace, checkpoint)


def piece(tensor: str, part: Part, extent: tuple[int, ...], offset: int) -> PieceRecord:
    ones, zeros = (1,) * len(extent), (0,) * len(extent)
    strides = (extent[-1], 1)[-len(extent) :]
    return PieceRecord(tensor, part, zeros, extent, ones, offset, strides, zeros)


def test_a_fused_quantized_module_is_declared_in_full():
    found = declaration(Fused(), CHECKPOINT)
    assert (found.world_size, found.ranks, found.axes) == (2, (1,), ENGINE.axes)
    assert found.tensors == (
        TensorRecord("gate.weight", (3, 4)),
        TensorRecord("norm.weight", (4,)),
        TensorRecord("up.weight", (3, 4)),
    )
    assert found.buffers == (
        BufferRecord(
            1, "cos_sin_cache", DType.F32, (8,), (1,), Kind.BUFFER,
            RoleRecord("constant", reason="rotary tables follow from the model's configuration"),
        ),
        BufferRecord(
            1, "norm", DType.BF16, (6,), (1,),
            pieces=(piece("norm.weight", Part.VALUE, (4,), 0),),
            fills=(FillRecord(4, (2,), (1,), 0),),
        ),
        BufferRecord(1, "tied", DType.BF16, (6,), (1,), role=RoleRecord("alias", of="norm")),
        BufferRecord(
            1, "weight", DType.F8E4M3FN, (1, 6, 4), (24, 4, 1),
            encoding=EncodingRecord("scaled", BLOCK, "weight_scale_inv", "any"),
            pieces=(
                piece("gate.weight", Part.VALUE, (3, 4), 0),
                piece("up.weight", Part.VALUE, (3, 4), 12),
            ),
        ),
        BufferRecord(
            1, "weight_scale_inv", DType.F32, (1, 4, 2), (8, 2, 1),
            encoding=EncodingRecord("scale", of="weight"),
            pieces=(
                piece("gate.weight", Part.SCALE, (2, 2), 0),
                piece("up.weight", Part.SCALE, (2, 2), 4),
            ),
        ),
    )  # fmt: skip


def test_a_dim_of_one_element_has_the_stride_of_the_buffers_dim():
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty((2, 1, 4), device="meta"))

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            for expert, (_, tensor) in enumerate(weights):
                self.weight.data[expert].copy_(tensor)

    checkpoint = {name: torch.empty((1, 4), device="meta") for name in ("a", "b")}
    [buffer] = declaration(Rows(), checkpoint).buffers
    assert [(found.offset, found.strides) for found in buffer.pieces] == [(0, (4, 1)), (4, (4, 1))]


class WithoutScales(Fused):
    """Drops the scales, as a loader does that looks for them under another name."""

    skipped = frozenset({"gate.weight_scale_inv", "up.weight_scale_inv"})


class WithoutHalf(Fused):
    skipped = frozenset({"up.weight", "up.weight_scale_inv"})


class WithoutHalfOfTheScales(Fused):
    skipped = frozenset({"up.weight_scale_inv"})


class CastCodes(Fused):
    codes = torch.bfloat16


class CastScales(Fused):
    scales = torch.bfloat16


class OddPadding(Fused):
    padding = 7


class Twice(Fused):
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights(weights)
        self.norm.data[3:].fill_(0)


class Extra(Fused):
    def __init__(self) -> None:
        super().__init__()
        self.workspace = torch.empty(3, device="meta")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (WithoutScales, "no buffer holds just their scales"),
        (WithoutHalf, "nothing writes 12 of the elements of weight"),
        (WithoutHalfOfTheScales, "no buffer holds just their scales"),
        (CastCodes, "is cast from"),
        (CastScales, "is cast from"),
        (OddPadding, "norm is filled with 7"),
        (Twice, "an element of norm is written twice"),
        (Extra, "nothing writes workspace"),
    ],
)
def test_what_is_not_accounted_for_is_refused(model: type[nn.Module], reason: str):
    with pytest.raises(DiagnosticError, match=reason):
        declaration(model(), CHECKPOINT)


@pytest.mark.parametrize("block", [(1, 4), (2, 2, 2)])
def test_scales_of_another_grid_are_refused(block: tuple[int, ...]):
    model = Fused()
    trace = trace_load(model, CHECKPOINT)
    with pytest.raises(DiagnosticError, match="does not hold one scale per block"):
        declare(replace(ENGINE, block=block), live_tensors(model), trace, CHECKPOINT)


@pytest.mark.parametrize("block", [BLOCK, None])
def test_codes_without_blocks_are_refused_with_what_can_be_served(block: tuple[int, ...] | None):
    model, checkpoint = WithoutScales(), {name: CHECKPOINT[name] for name in CODES}
    trace = trace_load(model, checkpoint)
    with pytest.raises(DiagnosticError) as caught:
        declare(replace(ENGINE, block=block), live_tensors(model), trace, checkpoint)
    [found] = [found for found in caught.value.diagnostics if found.code == "TS852"]
    assert ("weight_block_size" in (found.help or "")) == (block is None)


class AllPadding(nn.Module):
    """Holds the last rows of a padded vocabulary, past the end of the checkpoint's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty((3, 4), device="meta"))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for _, tensor in weights:
            kept = tensor[5:]
            self.weight.data[: len(kept)].copy_(kept)
            self.weight.data[len(kept) :].fill_(0)


def test_a_buffer_of_padding_alone_is_filled():
    found = declaration(AllPadding(), {"vocabulary": torch.empty((5, 4), device="meta")})
    [buffer] = found.buffers
    assert buffer.role == RoleRecord("transfer")
    assert (buffer.pieces, buffer.fills) == ((), (FillRecord(0, (3, 4), (4, 1), 0),))

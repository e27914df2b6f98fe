"""What is declared of live Megatron-core models is what their ranks hold, to the byte.

The models are real, on CPUs. Their weights are a checkpoint's, converted by plain torch and cut by
the attributes of Megatron's parameters, so that nothing of what is tested has a part in it.
"""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.megatron.cases import CASES
from tests.megatron.launch import Done, run
from tests.megatron.missing import needs_megatron
from tests.megatron.transformer_engine import ENCODING, FORMULA
from tests.models.produced import made
from tests.properties.dense import quantize
from tests.sglang.replay import bits, region
from tranship.runtime.dtypes import torch_dtype
from tranship.schema.check import check_manifest
from tranship.schema.codec import load
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Part
from tranship.schema.plan import TransferPlan
from tranship.schema.records import BufferRecord, Ints, PieceRecord

pytestmark = needs_megatron


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("megatron")


@cache
def done(folder: Path, name: str) -> Done:
    """Run a case once for all tests, also if it fails."""
    (folder / name).mkdir()
    return run(name, folder / name)


def value_of(weight: Tensor, record: BufferRecord, piece: PieceRecord) -> Tensor:
    """What a buffer holds of a weight, whole: its values, its codes, or their scales."""
    if record.encoding.kind == "plain":
        return weight.to(torch_dtype(record.dtype))
    codes, scales = quantize(weight, ENCODING, FORMULA)
    return scales if piece.part is Part.SCALE else codes


def box_of(tensor: Tensor, piece: PieceRecord) -> Tensor:
    kept = zip(piece.start, piece.extent, piece.step, strict=True)
    return tensor[tuple(slice(start, start + n * step, step) for start, n, step in kept)]


@pytest.mark.parametrize("name", CASES)
def test_every_element_is_held_where_it_is_declared(folder: Path, name: str) -> None:
    case = done(folder, name)
    weights = case.weights()
    seen = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in weights.items()}
    for rank in range(case.case.sizes.world_size):
        held = case.held(rank)
        for record in expand(case.sender, [rank]).buffers:
            buffer = held[record.name]
            assert (buffer.dtype, tuple(buffer.shape)) == (torch_dtype(record.dtype), record.shape)
            for piece in record.pieces:
                found = region(buffer, piece.offset, piece.extent, piece.strides)
                wanted = box_of(value_of(weights[piece.tensor], record, piece), piece)
                assert torch.equal(bits(found), bits(wanted)), (rank, record.name, piece)
                if piece.part is Part.VALUE:
                    box_of(seen[piece.tensor], piece).fill_(True)
    unseen = [name for name, mask in seen.items() if not mask.all()]
    tied = {record.name for record in expand(case.sender, []).tensors if record.tied_to}
    assert set(unseen) <= tied


@pytest.mark.parametrize("name", CASES)
def test_what_pads_a_vocabulary_or_scales_is_declared_as_padding(folder: Path, name: str) -> None:
    case = done(folder, name)
    for rank in range(case.case.sizes.world_size):
        held = case.held(rank)
        for record in expand(case.sender, [rank]).buffers:
            padding = held[record.name].float().isnan()
            for fill in record.fills:
                rows = region(padding, fill.offset, fill.sizes, fill.strides)
                assert rows.all()
                rows.fill_(False)
            assert not padding.any()


@pytest.mark.parametrize("name", CASES)
def test_the_ranks_fold_into_expressions_over_the_axes(folder: Path, name: str) -> None:
    case = done(folder, name)
    assert check_manifest(case.sender) == ()
    assert "rank" not in {axis for family in case.sender.buffers for axis in family.at}
    whole = load(case.folder / "whole.json", Manifest).value
    # The embedding is held by two stages where it is tied, or where one of them predicts tokens;
    # and routers count tokens. Scales are buffers of their own.
    scales = [family for family in case.sender.buffers if family.encoding.kind == "scale"]
    assert len(case.sender.buffers) <= len(whole.buffers) + len(scales) + 2


SHARDED = ("q_a_proj.weight", "kv_a_proj_with_mqa.weight")
"""Layers of plain torch shard these; those of Transformer Engine, which the layout has, do not."""


def contents(manifest: Manifest, rank: int) -> Counter[tuple[Ints, tuple[PieceRecord, ...]]]:
    """The buffers that a rank sends, whatever their names and dtypes."""
    return Counter(
        (held.shape, held.pieces)
        for held in expand(manifest, [rank]).buffers
        if held.role.kind == "transfer"
        and not any(piece.tensor.endswith(SHARDED) for piece in held.pieces)
    )


@pytest.mark.parametrize(
    "name",
    ["dense", "tied", "tied_on_one", "biases", "chunks", "experts", "split_experts", "latent"],
)
def test_the_layout_without_a_framework_says_the_same(folder: Path, name: str) -> None:
    case = done(folder, name)
    sizes = case.case.sizes
    options = {
        "world_size": sizes.world_size,
        "tensor_model_parallel_size": sizes.tp,
        "pipeline_model_parallel_size": sizes.pp,
        "virtual_pipeline_model_parallel_size": case.case.chunks,
        "expert_model_parallel_size": sizes.ep,
        "expert_tensor_parallel_size": sizes.tp if sizes.etp is None else sizes.etp,
        "make_vocab_size_divisible_by": 8,
    }
    layout = made(folder, case.case.architecture, "megatron", options, **case.case.changes)
    for rank in range(sizes.world_size):
        assert contents(case.sender, rank) == contents(layout, rank)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.receivers])
def test_an_engine_receives_every_version(folder: Path, name: str) -> None:
    case = done(folder, name)
    receiver = load(case.folder / "receiver.json", Manifest).value
    for rank in range(case.case.receivers):
        for number in (1, 2):
            weights = case.weights(number)
            received: dict[str, Tensor] = torch.load(case.folder / f"received-{rank}-{number}.pt")
            for record in expand(receiver, [rank]).buffers:
                if record.role.kind == "transfer":
                    wanted = received[record.name].clone()
                    for piece in record.pieces:
                        place = region(wanted, piece.offset, piece.extent, piece.strides)
                        whole = value_of(weights[piece.tensor], record, piece)
                        place.copy_(box_of(whole, piece))
                    assert torch.equal(bits(received[record.name]), bits(wanted)), record.name


def test_codes_and_scales_go_through_untouched(folder: Path) -> None:
    plan = load(done(folder, "blocks").folder / "plan.json", TransferPlan).value
    assert Counter(edge.op for edge in plan.edges if edge.tensor.endswith("_proj.weight")) == {
        "copy": 7
    }

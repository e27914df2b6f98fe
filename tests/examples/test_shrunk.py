"""Every example, shrunk, puts into the engine what the trainer's checkpoint would.

Once with elements that say where they come from, and once with real bytes, which are compared with
tensors that are cut, fused and quantized apart from all manifests.
"""

import re
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.examples.catalog import EXAMPLES, TRANSFERS, load_full, name_of
from tests.examples.checkpoint import Config, Weights, checkpoint
from tests.examples.engine import Linear, absorbed, held_by_sglang
from tests.examples.small import BLOCK, SIZES, Small, small
from tests.examples.trainers import held_by_fsdp, held_by_megatron
from tests.mutants.subject import Subject, assert_delivers, subject_of
from tranship.runtime.execute import Recipe, simulate
from tranship.schema.expand import expand
from tranship.schema.plan import TransferPlan

each = pytest.mark.parametrize("name", SIZES)


@cache
def subject(name: str) -> Subject:
    return subject_of(small(name).case)


def test_every_example_is_shrunk() -> None:
    assert [name_of(path) for path in TRANSFERS] == sorted(SIZES)


@each
def test_the_edges_are_those_of_the_example_itself(name: str) -> None:
    full = load_full(EXAMPLES / f"{name}.transfer.toml").plan
    assert _structure(subject(name).plan) == _structure(full)


def _structure(plan: TransferPlan) -> set[tuple[str, ...]]:
    """What every edge does with which tensors and buffers, whatever the sizes."""
    ends = [
        (edge.op, edge.place, edge.tensor, edge.sender.buffer, edge.receiver.buffer)
        for edge in plan.edges
    ]
    return {tuple(re.sub(r"\d+", "#", str(text)) for text in end) for end in ends}


@each
def test_the_plan_is_proved(name: str) -> None:
    assert subject(name).verify(subject(name).plan) == ()
    assert len(subject(name).plan.rounds) > 2


@each
def test_every_element_arrives_at_its_place(name: str) -> None:
    assert_delivers(subject(name))


@each
def test_the_engine_holds_the_checkpoint(name: str) -> None:
    chosen = small(name)
    weights = checkpoint(chosen.config)
    expected = held_by_sglang(chosen.config, weights, chosen.receiver.options, BLOCK)
    memory = [{key: _stale(tensor) for key, tensor in held.items()} for held in expected]
    assert _written(chosen) == [set(held) for held in expected]
    simulate(
        subject(name).plan,
        dict(enumerate(_trainer(chosen, weights))),
        dict(enumerate(memory)),
        {"DeepseekV2WeightLoaderMixin.post_load_weights": _absorb(chosen.config)},
    )
    for rank, held in enumerate(expected):
        for key, tensor in held.items():
            assert torch.equal(_bytes(memory[rank][key]), _bytes(tensor)), (rank, key)


def _trainer(chosen: Small, weights: Weights) -> list[Weights]:
    options = chosen.sender.options
    if chosen.sender.layout == "fsdp":
        return held_by_fsdp(weights, options)
    return held_by_megatron(chosen.config, weights, options)


def _written(chosen: Small) -> list[set[str]]:
    """The names of all buffers of every rank that an update writes, as the manifest has them."""
    names: list[set[str]] = [set() for _ in range(chosen.case.receiver.world_size)]
    for record in expand(chosen.case.receiver).buffers:
        if record.role.kind in ("transfer", "derived"):
            names[record.rank].add(record.name)
    return names


def _absorb(config: Config) -> Recipe:
    """Make one of `w_kc` and `w_vc`, told apart by their shapes."""

    def recipe(target: Tensor, codes: Tensor, scales: Tensor) -> None:
        sizes = config["qk_nope_head_dim"], config["v_head_dim"]
        made = absorbed(Linear(codes, scales), *sizes)
        target.copy_(next(tensor for tensor in made if tensor.shape == target.shape))

    return recipe


def _stale(tensor: Tensor) -> Tensor:
    """Memory like a tensor's, of an earlier update."""
    stale = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    torch.empty(0, dtype=torch.uint8).set_(stale.untyped_storage()).fill_(0x5A)
    return stale


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)

"""Live Megatron-core models are published to real SGLang engines, which hold every byte.

What an engine must hold is what its own `load_weights` makes of the same weights, quantized by
plain torch. The trainer has them as `convert.py` has them, which knows Megatron's layout and
nothing of tranship.
"""

from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from tests.megatron.cases import Case
from tests.megatron.launch import POLICY, context_and_store, start
from tests.megatron.missing import needs_megatron
from tests.runtime.trainings import VERSIONS
from tests.sglang.deliveries import RECEIVED, TP, Delivery, deliver
from tests.sglang.test_trace import pytestmark as needs_sglang
from tests.sglang.transfers import random_weights
from tranship.runtime.frameworks.megatron.mesh import ParallelSizes
from tranship.schema.codec import dump
from tranship.schema.manifest import Side

pytestmark = [*needs_megatron, *needs_sglang]

STAGES = ParallelSizes(4, tp=2, pp=2)
EXPERTS = ParallelSizes(4, tp=2, pp=2, ep=2, etp=1)

FEW = {"num_hidden_layers": 2, "intermediate_size": 512}
MORE = FEW | {"num_hidden_layers": 4}
LATENT = MORE | {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "moe_intermediate_size": 256,
}

TRAINERS: dict[str, dict[str, tuple[Case, bool]]] = {
    "qwen3": {
        "engine-stages": (Case("qwen3", STAGES, changes=FEW, receivers=TP), True),
        "engine-chunks": (
            Case("qwen3", STAGES, 2, changes=MORE, receivers=TP, wrapped=True),
            False,
        ),
    },
    "qwen3_moe": {"engine-experts": (Case("qwen3_moe", EXPERTS, changes=FEW, receivers=TP), True)},
    "deepseek_v3": {
        "engine-latent": (Case("deepseek_v3", EXPERTS, changes=LATENT, receivers=TP), True)
    },
}
"""By architecture: trainers, by where they meet their engines, and whether these hold FP8."""


def prepared(name: str, case: Case, fp8: bool, folder: Path) -> Delivery:
    """Write what an engine starts with."""
    senders = case.world.senders
    delivery = Delivery(name, folder, case.architecture, case.changes, fp8, senders, POLICY)
    delivery.prepare()
    return delivery


def started(case: Case, delivery: Delivery) -> list[ForkServerProcess]:
    """Start a trainer, and write what it reads, and what its engine must hold of that."""
    (delivery.folder / "whole.json").write_bytes(dump(case.whole(delivery.folder)))
    sources = delivery.sources()
    for version in VERSIONS:
        weights = random_weights(sources, version)
        torch.save(weights, delivery.folder / f"{version}-weights.pt")
        delivery.write_checkpoint(version, weights)
    return start(delivery.name, case, Side.SENDER, delivery.folder)


@pytest.mark.parametrize("architecture", TRAINERS)
def test_engines_hold_every_version_as_they_would_load_it(
    tmp_path: Path, architecture: str
) -> None:
    trainers = TRAINERS[architecture]
    deliveries = [prepared(name, *given, tmp_path / name) for name, given in trainers.items()]
    _, store = context_and_store()
    reports = deliver(
        deliveries, store, tmp_path, lambda each: started(trainers[each.name][0], each)
    )
    assert reports == [RECEIVED] * TP * len(deliveries)

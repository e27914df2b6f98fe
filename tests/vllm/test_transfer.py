"""A checkpoint sent by plan, by sessions on the CPU, against vLLM's own loading of it."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.live_models import model_of
from tests.runtime.local_jobs import at_once
from tests.sglang.replay import bits
from tests.vllm.cases import CASES, Case
from tests.vllm.marks import NEEDS_VLLM
from tests.vllm.results import Result
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.runtime.frameworks.vllm.recipes import LATENT_ATTENTION
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender
from tranship.runtime.step import StepStats
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import World
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest
from tranship.schema.plan import TransferPlan
from tranship.schema.transfer import Options

pytestmark = NEEDS_VLLM


def holder(manifest: Manifest, checkpoint: dict[str, Tensor]) -> nn.Module:
    """A model that holds a checkpoint."""
    model = model_of(manifest, 0)
    for name, held in live_tensors(model).items():
        held.tensor.copy_(checkpoint[name])
    return model


def leave_alone(*_: Tensor) -> None:
    """Stand in for what layers do that are not there."""


RECIPES = {LATENT_ATTENTION: leave_alone}


def deliver(
    plan: TransferPlan,
    ours: Manifest,
    source: nn.Module,
    theirs: Manifest,
    targets: list[nn.Module],
) -> None:
    """Send what a model holds to others, all in threads of their own."""
    sending, receiving = connect_locally(World(senders=1, receivers=len(targets)), timeout=30)
    sender = Sender.bind(plan, ours, live_tensors(source), sending[0], 0)
    receivers = [
        Receiver.bind(plan, theirs, live_tensors(target), end, rank, RECIPES)
        for rank, (target, end) in enumerate(zip(targets, receiving, strict=True))
    ]
    done = at_once([partial(sender.publish, 1), *(partial(r.receive, 1) for r in receivers)])
    assert len({stats.digest for stats in done if isinstance(stats, StepStats)}) == 1, done


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_the_plan_delivers_what_vllm_loads(engine: Callable[[Case], Result], case: Case) -> None:
    result = engine(case)
    ours, theirs = case.checkpoint(result.config), result.merged()
    options = Options()
    plan = compile_transfer(ours, theirs, options=options)
    named = digests_of(ours, theirs, None, None, options)
    assert verify(plan, ours, theirs, digests=named, options=options) == ()
    targets = [model_of(theirs, rank) for rank in range(case.tp)]
    deliver(plan, ours, holder(ours, result.checkpoint()), theirs, targets)
    for rank, target in enumerate(targets):
        received, loaded = live_tensors(target), result.loaded(rank)
        records = {record.name: record for record in expand(theirs, [rank]).buffers}
        for name in loaded.keys() & records.keys():
            if records[records[name].role.of or name].role.kind == "transfer":
                assert torch.equal(bits(received[name].tensor), bits(loaded[name])), (rank, name)

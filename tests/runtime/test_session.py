"""Steps that succeed, and steps that do not begin because ranks do not agree."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from tests.runtime.live_models import place
from tests.runtime.local_jobs import WORLD, at_once, bf16, bound, codes, fp8
from tests.runtime.odd_transports import Passing
from tests.runtime.transfers import UP, Transfer
from tranship.runtime.errors import DistributedError, StalePlanError
from tranship.runtime.execute import Recipe
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender, State
from tranship.runtime.step import StepStats
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import Gathered, Meanwhile, Transport, World, nothing
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.manifest import Kind, Side
from tranship.schema.plan import TransferPlan

LAYER_0 = UP.format(layer=0)


@pytest.mark.parametrize("transfer", [bf16, fp8])
def test_every_version_arrives_whole(transfer: Callable[[], Transfer]) -> None:
    job = bound(transfer())
    assert [receiver.state for receiver in job.receivers] == [State.EMPTY] * 2
    for version in (3, 4, 9):
        job.train(version)
        results = job.step(version)
        stats = [result for result in results if isinstance(result, StepStats)]
        assert len(stats) == WORLD.size, results
        assert job.wrong(version) == []
        assert len({item.digest for item in stats}) == 1
        assert sum(s.bytes_sent for s in stats) == sum(s.bytes_received for s in stats) > 0
        assert {item.rounds for item in stats} == {len(job.transfer.plan.rounds)}
        assert all(receiver.serving_allowed for receiver in job.receivers)
        ranks = [*job.senders, *job.receivers]
        assert [rank.committed_version for rank in ranks] == [version] * WORLD.size


def test_versions_have_digests_of_their_own() -> None:
    job = bound(bf16())
    digests: set[str] = set()
    for version in (1, 2, 3):
        job.train(1 if version == 3 else version)
        digests |= {s.digest for s in job.step(version) if isinstance(s, StepStats)}
    assert len(digests) == 2


def test_constants_are_left_alone() -> None:
    job = bound(bf16())
    before = [model.get_buffer("model.rotary").clone() for model in job.engines]
    job.step(1)
    for model, rotary in zip(job.engines, before, strict=True):
        assert torch.equal(
            model.get_buffer("model.rotary").view(torch.int32), rotary.view(torch.int32)
        )


# --- before the first byte ------------------------------------------------------------------------


def test_versions_must_be_the_same_and_go_up() -> None:
    job = bound(bf16())
    job.train(1)
    job.step(1)
    job.train(2)
    assert codes(job.step(2, 2, 2, 3)) == ["TS832"]
    assert codes(job.step(1)) == ["TS833"] * 4
    assert codes(job.step(0)) == ["TS833"] * 4
    assert all(receiver.serving_allowed for receiver in job.receivers)
    assert job.wrong(1) == []
    job.step(2)
    assert job.wrong(2) == []


def recompiled(plan: TransferPlan) -> TransferPlan:
    """The same transfer with another digest."""
    staging = plan.staging.model_copy(update={"budget": plan.staging.budget + 1})
    return plan.model_copy(update={"staging": staging})


def test_plans_must_be_the_same() -> None:
    transfer, other = bf16(), replace(bf16(), plan=recompiled(bf16().plan))
    ends = connect_locally(WORLD, timeout=30)
    job, odd = bound(transfer, ends), bound(other, ends)
    job.receivers[1] = odd.receivers[1]
    assert codes(job.step(1)) == ["TS830"]
    assert not any(receiver.serving_allowed for receiver in job.receivers)
    assert {receiver.state for receiver in job.receivers} == {State.EMPTY}


def test_plans_of_other_manifests_are_named_as_such() -> None:
    transfer = bf16()
    side = transfer.plan.sender.model_copy(update={"manifest": "sha256:" + "0" * 64})
    plan = transfer.plan.model_copy(update={"sender": side})
    ends = connect_locally(WORLD, timeout=30)
    job = bound(transfer, ends)
    live = live_tensors(transfer.models(Side.RECEIVER)[0])
    job.receivers[0] = Receiver.bind(plan, transfer.receiver, live, ends[1][0], 0, transfer.recipes)
    assert codes(job.step(1)) == ["TS830", "TS831"]


def test_a_buffer_that_was_rebound_stops_all_ranks() -> None:
    job = bound(bf16())
    job.train(1)
    job.step(1)
    place(job.engines[1], LAYER_0, Kind.PARAMETER, torch.zeros(18, 40).bfloat16())
    results = job.step(2)
    assert codes(results) == ["TS810"]
    assert "receiver rank 1: TS810" in str(results[0])
    assert job.receivers[0].serving_allowed


def test_ranks_must_be_connected_as_themselves() -> None:
    senders, receivers = connect_locally(WORLD, timeout=30)
    assert codes(bound(bf16(), (senders, receivers[::-1])).step(1)) == ["TS834", "TS834"]


def test_a_rank_that_does_not_come_is_named() -> None:
    job = bound(bf16(), connect_locally(WORLD, timeout=0.5))
    results = at_once([lambda: job.senders[0].publish(1), lambda: job.receivers[1].receive(1)])
    assert codes(results) == ["TS836", "TS836"]
    assert "sender rank 1 was not heard of" in str(results[0])
    assert "receiver rank 0 was not heard of" in str(results[0])


def test_the_first_rank_may_be_the_one_that_does_not_come() -> None:
    job = bound(bf16(), connect_locally(WORLD, timeout=0.5))
    (result,) = at_once([lambda: job.senders[1].publish(1)])
    assert isinstance(result, DistributedError)
    assert result.diagnostics[0].code == "TS836"


class Foreign(Passing):
    """Says what a later release might say."""

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        return self.inner.gather('{"format": "tranship.replay/2", "news": 1}', meanwhile)


class Garbling(Passing):
    """Says nothing of sense."""

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        return self.inner.gather('{"format"', meanwhile)


@pytest.mark.parametrize(("kind", "code"), [(Foreign, "TS835"), (Garbling, "TS837")])
def test_what_cannot_be_understood_is_refused(kind: type[Passing], code: str) -> None:
    senders, receivers = connect_locally(WORLD, timeout=30)
    job = bound(bf16(), (senders, (receivers[0], kind(receivers[1]))))
    assert codes(job.step(1)) == [code]
    assert {receiver.state for receiver in job.receivers} == {State.EMPTY}


# --- binding --------------------------------------------------------------------------------------


def test_a_plan_of_another_manifest_is_stale() -> None:
    transfer = bf16()
    changed = transfer.sender.model_copy(update={"axes": ()})
    live, ends = live_tensors(transfer.models(Side.SENDER)[0]), connect_locally(WORLD)
    with pytest.raises(StalePlanError, match="TS811"):
        Sender.bind(transfer.plan, changed, live, ends[0][0], 0)


def refused(ends: Sequence[Transport], **recipes: Recipe) -> list[str]:
    transfer = bf16()
    live = live_tensors(transfer.models(Side.RECEIVER)[0])
    with pytest.raises(DiagnosticError) as caught:
        Receiver.bind(transfer.plan, transfer.receiver, live, ends[0], 0, recipes)
    return [f"{d.code} {d.help}" for d in caught.value.diagnostics]


def test_recipes_must_be_there() -> None:
    ends = connect_locally(WORLD)[1]
    assert refused(ends) == ["TS813 pass it in `recipes`"]
    assert refused(ends, add_upp=print) == ["TS813 there is 'add_upp'"]


def test_the_transport_must_connect_the_ranks_of_the_plan() -> None:
    ends = connect_locally(World(senders=2, receivers=3))[1]
    assert refused(ends, add_up=print) == ["TS815 None"]


class Elsewhere(Passing):
    """A transport for other memory."""

    def refusal(self, device: torch.device) -> str | None:
        return f"{device} is not for this transport"


def test_the_transport_must_reach_the_memory() -> None:
    ends = connect_locally(WORLD)[1]
    assert refused([Elsewhere(ends[0])], add_up=print) == ["TS814 None"]

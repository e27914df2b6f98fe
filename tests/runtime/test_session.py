"""Whole steps of all ranks, as threads of this process: they commit together or not at all."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.live_models import place
from tests.runtime.odd_transports import Flipping, Passing
from tests.runtime.transfers import UP, Transfer, bf16_transfer, fp8_transfer
from tranship.runtime import replay
from tranship.runtime.errors import DistributedError, StalePlanError
from tranship.runtime.execute import Recipe
from tranship.runtime.live import live_tensors
from tranship.runtime.program import RoundProgram
from tranship.runtime.session import Receiver, Sender, State
from tranship.runtime.step import StepStats
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import Gathered, Parcel, Transport, World
from tranship.schema.diagnostics import DiagnosticError, known_codes
from tranship.schema.manifest import Kind, Side
from tranship.schema.plan import TransferPlan

bf16, fp8 = cache(bf16_transfer), cache(fp8_transfer)
WORLD = World(senders=2, receivers=2)
LAYER_0 = UP.format(layer=0)
Result = StepStats | BaseException


@dataclass
class Job:
    """Both sides of a transfer, bound."""

    transfer: Transfer
    trainers: list[nn.Module]
    engines: list[nn.Module]
    senders: list[Sender]
    receivers: list[Receiver]

    def train(self, version: int) -> None:
        for rank, model in enumerate(self.trainers):
            self.transfer.train(model, rank, version)

    def wrong(self, version: int) -> list[str]:
        """Names of tensors of either engine that are not as they must be."""
        models = enumerate(self.engines)
        return [
            name for rank, model in models for name in self.transfer.wrong(model, rank, version)
        ]

    def step(self, *versions: int) -> list[Result]:
        """Publish and receive; `versions` are those of all ranks, or the one of all."""
        each = versions if len(versions) == WORLD.size else versions * WORLD.size
        calls: list[Callable[[int], StepStats]] = [sender.publish for sender in self.senders]
        calls += [receiver.receive for receiver in self.receivers]
        return at_once([partial(call, v) for call, v in zip(calls, each, strict=True)])


def at_once(calls: Sequence[Callable[[], StepStats]]) -> list[Result]:
    """Make all calls in threads of their own; return results or what was raised."""

    def outcome(call: Callable[[], StepStats]) -> Result:
        try:
            return call()
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


Ends = Sequence[Transport]


def bound(transfer: Transfer, ends: tuple[Ends, Ends] | None = None, **recipes: Recipe) -> Job:
    trainers, engines = transfer.models(Side.SENDER), transfer.models(Side.RECEIVER)
    ends = ends or connect_locally(WORLD, timeout=30)
    plan = transfer.plan
    senders = [
        Sender.bind(plan, transfer.sender, live_tensors(model), end, rank)
        for rank, (model, end) in enumerate(zip(trainers, ends[0], strict=True))
    ]
    given = {**transfer.recipes, **recipes}
    receivers = [
        Receiver.bind(plan, transfer.receiver, live_tensors(model), end, rank, given)
        for rank, (model, end) in enumerate(zip(engines, ends[1], strict=True))
    ]
    return Job(transfer, trainers, engines, senders, receivers)


def codes(results: Sequence[Result]) -> list[str]:
    """Codes that every rank raised; it must be the same ones, and all ranks."""
    errors = [error for error in results if isinstance(error, DistributedError)]
    assert len(errors) == len(results), results
    found = [[(d.code, d.at, d.message) for d in error.diagnostics] for error in errors]
    assert all(each == found[0] for each in found)
    assert {code for code, _, _ in found[0]} <= set(known_codes())
    return [code for code, _, _ in found[0]]


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


# --- before the first byte -------------------------------------------------------------------------


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
    job = bound(bf16(), connect_locally(WORLD, timeout=0.2))
    results = at_once([lambda: job.senders[0].publish(1), lambda: job.receivers[1].receive(1)])
    assert codes(results) == ["TS836", "TS836"]
    assert "sender rank 1 was not heard of" in str(results[0])
    assert "receiver rank 0 was not heard of" in str(results[0])


def test_the_first_rank_may_be_the_one_that_does_not_come() -> None:
    job = bound(bf16(), connect_locally(WORLD, timeout=0.2))
    (result,) = at_once([lambda: job.senders[1].publish(1)])
    assert isinstance(result, DistributedError)
    assert result.diagnostics[0].code == "TS836"


class Foreign(Passing):
    """Says what a later release might say."""

    def gather(self, payload: str) -> Gathered:
        return self.inner.gather('{"format": "tranship.replay/2", "news": 1}')


class Garbling(Passing):
    """Says nothing of sense."""

    def gather(self, payload: str) -> Gathered:
        return self.inner.gather('{"format"')


@pytest.mark.parametrize(("kind", "code"), [(Foreign, "TS835"), (Garbling, "TS837")])
def test_what_cannot_be_understood_is_refused(kind: type[Passing], code: str) -> None:
    senders, receivers = connect_locally(WORLD, timeout=30)
    job = bound(bf16(), (senders, (receivers[0], kind(receivers[1]))))
    assert codes(job.step(1)) == [code]
    assert {receiver.state for receiver in job.receivers} == {State.EMPTY}


# --- binding ---------------------------------------------------------------------------------------


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

    def refusal(self, memory: Tensor) -> str | None:
        return f"{memory.dtype} on {memory.device} is not for this transport"


def test_the_transport_must_reach_the_memory() -> None:
    ends = connect_locally(WORLD)[1]
    assert refused([Elsewhere(ends[0])], add_up=print) == ["TS814 None"]


# --- failures after the first byte -----------------------------------------------------------------


def torn(job: Job, expected: list[str]) -> str:
    """Publish version 2 after version 1; all must fail, and version 3 must mend it."""
    job.train(1)
    assert all(isinstance(result, StepStats) for result in job.step(1))
    job.train(2)
    results = job.step(2)
    assert codes(results) == expected
    assert [receiver.state for receiver in job.receivers] == [State.TORN] * 2
    assert not any(receiver.serving_allowed for receiver in job.receivers)
    ranks = [*job.senders, *job.receivers]
    assert [rank.committed_version for rank in ranks] == [1] * WORLD.size
    return str(results[0])


def mended(job: Job, version: int) -> None:
    job.train(version)
    assert all(isinstance(result, StepStats) for result in job.step(version))
    assert job.wrong(version) == []
    assert all(receiver.serving_allowed for receiver in job.receivers)


@pytest.mark.parametrize("make", [bf16, fp8])
def test_a_bit_that_changes_on_the_wire_tears_all_receivers(make: Callable[[], Transfer]) -> None:
    transfer = make()
    rounds = len(transfer.plan.rounds)
    senders, receivers = connect_locally(WORLD, timeout=30)
    job = bound(transfer, (senders, (receivers[0], Flipping(receivers[1], rounds + 2))))
    message = torn(job, ["TS839"])
    assert f"in round 1, what sender rank 0 sent receiver rank 1 of {UP} changed" in message
    mended(job, 2)


@pytest.mark.parametrize("round_number", [0, 3])
def test_a_byte_that_is_overwritten_tears_all_receivers(
    monkeypatch: pytest.MonkeyPatch, round_number: int
) -> None:
    job = bound(bf16())
    target = job.engines[1].get_parameter(LAYER_0)
    real = replay.unpack

    def unpack(item: RoundProgram, buffers: Sequence[Tensor], slot: Tensor) -> None:
        real(item, buffers, slot)
        mine = any(buffer.data_ptr() == target.data_ptr() for buffer in buffers)
        if mine and item.number == round_number and job.receivers[1].committed_version == 1:
            target.view(torch.int16)[3, 3] += 1

    monkeypatch.setattr(replay, "unpack", unpack)
    message = torn(job, ["TS840"])
    assert "what sender rank 0 sent receiver rank 1 of" in message
    assert UP in message
    monkeypatch.undo()
    mended(job, 2)


@pytest.mark.parametrize("stage", ["pack", "unpack"])
def test_an_error_on_one_rank_is_raised_by_all(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    job = bound(bf16())
    models = job.trainers if stage == "pack" else job.engines
    target = models[1].get_parameter(LAYER_0)
    real = getattr(replay, stage)

    def fail(item: RoundProgram, buffers: Sequence[Tensor], slot: Tensor) -> None:
        mine = any(buffer.data_ptr() == target.data_ptr() for buffer in buffers)
        if mine and item.number == 1 and job.senders[0].committed_version == 1:
            raise RuntimeError("out of luck")
        real(item, buffers, slot)

    monkeypatch.setattr(replay, stage, fail)
    message = torn(job, ["TS838"])
    assert f"rank 1: TS838: {stage} failed: RuntimeError: out of luck" in message
    monkeypatch.undo()
    mended(job, 2)


def test_an_error_in_a_recipe_is_raised_by_all() -> None:
    calls: list[int] = []

    def add_up(total: Tensor, up: Tensor) -> None:
        calls.append(1)
        if len(calls) == 8:  # two ranks with three layers each make six in a step
            raise ValueError("no sum")
        bf16().recipes["add_up"](total, up)

    job = bound(bf16(), add_up=add_up)
    message = torn(job, ["TS838"])
    assert "derive failed: RecipeError: recipe 'add_up' for 'model.layers." in message
    assert "ValueError: no sum" in message
    mended(job, 2)


def test_errors_of_several_ranks_are_raised_together(monkeypatch: pytest.MonkeyPatch) -> None:
    job = bound(bf16())

    def fail(item: RoundProgram, buffers: Sequence[Tensor], slot: Tensor) -> None:
        raise RuntimeError(f"cannot unpack round {item.number}")

    monkeypatch.setattr(replay, "unpack", fail)
    assert codes(job.step(1)) == ["TS838", "TS838"]


class Leaving(Passing):
    """A rank that is gone in the middle of a step."""

    def exchange(self, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        raise SystemExit


def test_a_rank_that_leaves_in_the_middle_is_named() -> None:
    senders, receivers = connect_locally(WORLD, timeout=0.3)
    job = bound(bf16(), ((senders[0], Leaving(senders[1])), receivers))
    results = job.step(1)
    assert isinstance(results[1], SystemExit)
    found = codes([results[0], *results[2:]])
    assert found == ["TS836", "TS838", "TS838"]
    assert "sender rank 1 was not heard of" in str(results[0])
    assert {receiver.state for receiver in job.receivers} == {State.TORN}

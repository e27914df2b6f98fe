"""Steps that fail after the first byte: no rank commits, and no receiver may serve."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.runtime.local_jobs import WORLD, Job, bf16, bound, codes, fp8
from tests.runtime.odd_transports import Flipping, Passing
from tests.runtime.transfers import UP, Transfer
from tranship.runtime import replay
from tranship.runtime.program import RoundProgram
from tranship.runtime.session import State
from tranship.runtime.step import StepStats
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import Parcel

LAYER_0 = UP.format(layer=0)


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

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        raise SystemExit


def test_a_rank_that_leaves_in_the_middle_is_named() -> None:
    senders, receivers = connect_locally(WORLD, timeout=1.0)
    job = bound(bf16(), ((senders[0], Leaving(senders[1])), receivers))
    results = job.step(1)
    assert isinstance(results[1], SystemExit)
    found = codes([results[0], *results[2:]])
    assert found == ["TS836", "TS838", "TS838"]
    assert "sender rank 1 was not heard of" in str(results[0])
    assert {receiver.state for receiver in job.receivers} == {State.TORN}

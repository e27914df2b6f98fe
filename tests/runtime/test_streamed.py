"""Steps on streams, without a GPU: streams and events that do everything at once stand in for it.

Kernels run in the interpreter, which is not made for threads: one runs at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch

from tests.runtime.local_jobs import WORLD, at_once, bf16
from tests.runtime.local_jobs import codes as codes_of
from tests.runtime.odd_transports import Flipping
from tests.runtime.packed_cases import SCALES, Case
from tests.runtime.packed_cases import bound as bound_case
from tests.runtime.stand_ins import Stream, one_at_a_time, stand_in_for_streams
from tranship.runtime import session
from tranship.runtime.errors import DistributedError
from tranship.runtime.kernels.packed import PackedKernels
from tranship.runtime.kernels.rounds import Kernels
from tranship.runtime.live import live_tensors
from tranship.runtime.replay import Endpoint
from tranship.runtime.session import Receiver, Sender, State
from tranship.runtime.step import StepStats
from tranship.runtime.streamed import StreamReplayer
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import MessageTransport
from tranship.schema.manifest import Side

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are real streams")


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CUDA's streams be stand-ins, and sessions replay on them."""
    stand_in_for_streams(monkeypatch)
    monkeypatch.setattr(session, "replayer", streamed)
    methods = [(Kernels, "begin"), (Kernels, "run"), (PackedKernels, "run")]
    one_at_a_time(monkeypatch, methods)


def streamed(end: Endpoint) -> StreamReplayer:
    assert isinstance(end.transport, MessageTransport)
    return StreamReplayer(end, end.transport)


Sessions = list[Sender | Receiver]


def bound(odd: Callable[[MessageTransport], MessageTransport]) -> tuple[Sessions, list[Any]]:
    """Bind all ranks at once, the last one to a transport that `odd` makes; with their models."""
    transfer = bf16()
    senders, receivers = connect_locally(WORLD, timeout=20)
    ends: list[MessageTransport] = [*senders, *receivers[:-1], odd(receivers[-1])]
    models = [*transfer.models(Side.SENDER), *transfer.models(Side.RECEIVER)]

    def bind(member: int) -> Sender | Receiver:
        (side, rank), live = WORLD.seat(member), live_tensors(models[member])
        if side is Side.SENDER:
            return Sender.bind(transfer.plan, transfer.sender, live, ends[member], rank)
        plan, manifest = transfer.plan, transfer.receiver
        return Receiver.bind(plan, manifest, live, ends[member], rank, transfer.recipes)

    with ThreadPoolExecutor(WORLD.size) as pool:
        return list(pool.map(bind, range(WORLD.size))), models


def step(sessions: Sessions, models: list[Any], version: int) -> Sequence[Any]:
    """Train, publish and receive."""
    for rank in range(WORLD.senders):
        bf16().train(models[rank], rank, version)
    return at_versions(sessions, [version] * WORLD.size)


def at_versions(sessions: Sessions, versions: Sequence[int]) -> Sequence[Any]:
    """Publish and receive, every rank the version that it means."""
    calls = [
        (lambda own=own, version=version: own.publish(version))
        if isinstance(own, Sender)
        else (lambda own=own, version=version: own.receive(version))
        for own, version in zip(sessions, versions, strict=True)
    ]
    return at_once(cast("list[Callable[[], StepStats]]", calls))


def wrong(models: list[Any], version: int) -> Iterator[str]:
    for rank, model in enumerate(models[WORLD.senders :]):
        yield from bf16().wrong(model, rank, version)


def test_rounds_on_streams_deliver_every_version_whole() -> None:
    sessions, models = bound(lambda end: end)
    assert len(bf16().plan.rounds) > len(bf16().plan.staging.slots)
    for version in (1, 2):
        results = step(sessions, models, version)
        assert [result for result in results if isinstance(result, BaseException)] == []
        assert len({result.digest for result in results}) == 1
        assert list(wrong(models, version)) == []


def test_a_bit_that_changes_on_its_way_is_found_and_the_next_step_repairs_it() -> None:
    sessions, models = bound(lambda end: Flipping(end, len(bf16().plan.rounds)))
    results = step(sessions, models, 1)
    assert all(isinstance(result, DistributedError) for result in results)
    assert {finding.code for finding in results[0].diagnostics} == {"TS839"}
    states = [own.state for own in sessions if isinstance(own, Receiver)]
    assert states == [State.TORN, State.TORN]
    assert not [r for r in step(sessions, models, 2) if isinstance(r, BaseException)]
    assert list(wrong(models, 2)) == []


def test_memory_that_was_packed_into_for_a_refused_step_is_kept_until_that_is_done() -> None:
    sessions, models = bound(lambda end: end)
    assert not [r for r in step(sessions, models, 1) if isinstance(r, BaseException)]
    last = WORLD.size - 1
    refused = at_versions(sessions, [2] * last + [9])
    assert all(isinstance(result, DistributedError) for result in refused)
    before = Stream.waits
    for own in sessions:
        own.close()
    assert Stream.waits - before >= WORLD.senders


def test_packed_scales_are_written_and_compared_after_all_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case((128, 20), 130, senders=2, cut=50, exact=True)
    job = bound_case(case)
    job.assert_whole(1)
    held = job.engines[0].get_parameter(SCALES).data
    check = PackedKernels.run

    def spoil(kernels: PackedKernels) -> None:
        for launch in kernels.write:
            launch()
        held[147, 0] += 1
        for launch in kernels.check:
            launch()

    monkeypatch.setattr(PackedKernels, "run", spoil)
    assert codes_of(job.step(2)) == ["TS841"]
    monkeypatch.setattr(PackedKernels, "run", check)
    job.assert_whole(3)

"""Steps of ranks that map memory, without a GPU: they are threads of one process.

Streams and events do everything at once, and what a sender offers is found in a registry. Kernels
run in the interpreter, one at a time.
"""

import gc
import tempfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident
from typing import Any

import pytest
import torch
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.runtime.local_jobs import WORLD, bf16
from tests.runtime.local_jobs import codes as codes_of
from tests.runtime.packed_cases import SCALES, Case
from tests.runtime.packed_cases import bound as bound_case
from tests.runtime.stand_ins import Event, Registry, one_at_a_time, stand_in_for_streams
from tests.runtime.thread_ranks import Sessions, bind_all, publish_all, step_all, wrong_in
from tests.runtime.transfers import UP, Transfer, fp8_transfer
from tranship.runtime import lending
from tranship.runtime.direct import GROUPS
from tranship.runtime.errors import DistributedError
from tranship.runtime.kernels.mapped import DirectKernels, SampleKernels
from tranship.runtime.session import Receiver, State
from tranship.runtime.transports.cuda_ipc import CudaIpcTransport
from tranship.runtime.transports.meeting import meet
from tranship.runtime.transports.protocol import World

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are real GPUs")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry()
    stand_in_for_streams(monkeypatch)
    monkeypatch.setattr(lending, "SharedEvent", Event)
    monkeypatch.setattr(lending, "device_uuid", str)
    for name in ("make_offer", "open_offer", "watch"):
        monkeypatch.setattr(lending, name, getattr(found, name))
    monkeypatch.setattr(CudaIpcTransport, "refusal", _serve)
    one_at_a_time(monkeypatch, [(DirectKernels, "run"), (SampleKernels, "run")])
    return found


def _serve(transport: CudaIpcTransport, device: torch.device) -> None:
    del transport, device


def bound(transfer: Transfer | None = None) -> tuple[Sessions, list[Any]]:
    """Bind all ranks at once: sessions, or what was raised; and their models."""
    store = HashStore()

    def connect(member: int) -> CudaIpcTransport:
        meeting = meet(store, WORLD, member, f"gpu {member}", 10.0)
        return CudaIpcTransport(WORLD, *WORLD.seat(member), 10.0, meeting)

    return bind_all(transfer or bf16(), connect)


def step(sessions: Sessions, models: list[Any], version: int) -> list[Any]:
    return step_all(bf16(), sessions, models, version)


def failed_step(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, fail: Callable[..., None]
) -> tuple[Sessions, list[Any], list[Any]]:
    """Bind, and do a step; then one in which a method fails. Return sessions, models, results."""
    sessions, models = bound()
    assert not [r for r in step(sessions, models, 1) if isinstance(r, BaseException)]
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, fail)
        results = step(sessions, models, 2)
    assert set(codes_of(results)) == {"TS838"}
    return sessions, models, results


def wrong(models: list[Any], version: int) -> list[str]:
    return wrong_in(bf16(), models, version)


def test_receivers_that_map_memory_have_every_version_whole(registry: Registry) -> None:
    sessions, models = bound()
    assert registry.open == WORLD.senders * WORLD.receivers
    digests: set[str] = set()
    for version in (1, 2):
        results = step(sessions, models, version)
        assert [result for result in results if isinstance(result, BaseException)] == []
        assert len({result.digest for result in results}) == 1
        assert wrong(models, version) == []
        digests.add(results[0].digest)
    assert len(digests) == 2
    for session in sessions:
        session.close()
    assert registry.open == 0
    results = step(sessions, models, 3)
    assert "the session is closed" in str(results[-1])
    assert all(own.state is State.COMMITTED for own in sessions if isinstance(own, Receiver))


def test_memory_that_a_dropped_session_has_mapped_is_unmapped(registry: Registry) -> None:
    sessions, models = bound()
    assert not [result for result in step(sessions, models, 2) if isinstance(result, Exception)]
    assert set(codes_of(publish_all(sessions, 1))) == {"TS833"}
    assert registry.open == WORLD.senders * WORLD.receivers
    sessions.clear()
    gc.collect()
    assert registry.open == 0


@pytest.mark.parametrize("kind", ["copied", "quantized by the receiver"])
def test_the_digest_of_a_step_is_of_the_weights_whatever_is_sampled(
    registry: Registry, kind: str
) -> None:
    transfer = bf16() if kind == "copied" else fp8_transfer()
    sessions, models = bound(transfer)
    for rank in range(WORLD.senders):
        transfer.train(models[rank], rank, 1)
    same = {publish_all(sessions, version)[0].digest for version in (1, 2, 3, GROUPS + 1)}
    assert len(same) == 1
    digests = same
    for layer in range(3):
        with torch.no_grad():
            models[0].get_parameter(UP.format(layer=layer))[0, 0] = 30.0 + layer
        # The same group of jobs is sampled each time.
        digests |= {publish_all(sessions, 1 + (layer + 2) * GROUPS)[0].digest}
    assert len(digests) == 4


def test_a_sender_that_cannot_share_is_heard_of_by_all_at_once(registry: Registry) -> None:
    registry.refuses.add("sender rank 1")
    results, _ = bound()
    for result in results:
        assert isinstance(result, DistributedError)
        assert {finding.code for finding in result.diagnostics} == {"TS816"}
        places = {finding.at.file for finding in result.diagnostics if finding.at is not None}
        assert places == {"sender rank 1"}
    assert registry.open == 0


def test_memory_that_was_mapped_and_is_gone_tears_the_step(registry: Registry) -> None:
    sessions, models = bound()
    assert not [r for r in step(sessions, models, 1) if isinstance(r, BaseException)]
    registry.stale = True
    results = step(sessions, models, 2)
    assert all("TS819" in str(result) for result in results)
    assert [own.state for own in sessions if isinstance(own, Receiver)] == [State.TORN] * 2
    assert [own.committed_version for own in sessions] == [1] * WORLD.size


def test_memory_of_a_receiver_that_was_replaced_is_not_written(registry: Registry) -> None:
    sessions, models = bound()
    assert not [r for r in step(sessions, models, 1) if isinstance(r, BaseException)]
    parameter = models[WORLD.senders].get_parameter("model.norm.weight")
    held, parameter.data = parameter.data, parameter.data.clone()
    assert codes_of(step(sessions, models, 2)) == ["TS810"]
    assert wrong(models, 1) == []
    parameter.data = held
    assert not [r for r in step(sessions, models, 3) if isinstance(r, BaseException)]
    assert wrong(models, 3) == []


def test_samples_that_fail_tear_one_step_and_no_later_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(samples: SampleKernels, group: int) -> None:
        raise RuntimeError(f"no sample of group {group}")

    sessions, models, results = failed_step(monkeypatch, SampleKernels, "run", fail)
    assert "no sample of group 2" in str(results[-1])
    assert not [r for r in step(sessions, models, 3) if isinstance(r, BaseException)]
    assert wrong(models, 3) == []


def test_receivers_wait_for_the_weights_before_they_read(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: defaultdict[int, list[str]] = defaultdict(list)
    run = DirectKernels.run

    def hold(event: Event, stream: object) -> None:
        order[get_ident()].append("hold")

    def read(kernels: DirectKernels, group: int) -> None:
        order[get_ident()].append("read")
        run(kernels, group)

    monkeypatch.setattr(Event, "hold", hold)
    monkeypatch.setattr(DirectKernels, "run", read)
    sessions, models = bound()
    assert not [r for r in step(sessions, models, 1) if isinstance(r, BaseException)]
    assert [*order.values()] == [[*["hold"] * WORLD.senders, "read"]] * WORLD.receivers


def test_a_sender_whose_weights_are_not_ready_is_heard_of_before_anything_is_read(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(event: Event, stream: object) -> None:
        raise RuntimeError("the GPU is lost")

    sessions, models, results = failed_step(monkeypatch, Event, "record", fail)
    assert "waiting for the weights failed: the GPU is lost" in str(results[-1])
    assert all(own.serving_allowed for own in sessions if isinstance(own, Receiver))
    assert wrong(models, 1) == []


def test_nobody_listens_any_more_where_all_are_bound(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, short_folder: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    sessions, _ = bound()
    assert [own for own in sessions if isinstance(own, BaseException)] == []
    assert list(short_folder.iterdir()) == []


def mapping(world: World) -> list[CudaIpcTransport]:
    """Let all ranks meet that map memory."""
    store = HashStore()

    def end(member: int) -> CudaIpcTransport:
        meeting = meet(store, world, member, f"gpu {member}", 10.0)
        return CudaIpcTransport(world, *world.seat(member), 10.0, meeting)

    with ThreadPoolExecutor(world.size) as pool:
        return list(pool.map(end, range(world.size)))


def test_packed_scales_are_written_and_compared_in_the_same_step(registry: Registry) -> None:
    job = bound_case(Case((128, 20), 130, senders=2, cut=128, exact=True), mapping)
    for version in (1, 2):
        job.assert_whole(version)
    held = job.engines[0].get_parameter(SCALES).data
    run = DirectKernels.run

    def spoil(kernels: DirectKernels, group: int) -> None:
        run(kernels, group)
        held[147, 0] += 1
        for launch in kernels.packed.check:
            launch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DirectKernels, "run", spoil)
        assert codes_of(job.step(3)) == ["TS841"]
    job.assert_whole(4)

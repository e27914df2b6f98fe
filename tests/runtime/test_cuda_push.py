"""Messages that senders write into receivers' memory, without a GPU: ranks are threads.

Streams do everything at once, so that a rank itself waits where its stream would.
"""

import ctypes
import gc
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.runtime.local_jobs import WORLD, bf16
from tests.runtime.stand_ins import CPU, Registry, one_at_a_time, stand_in_for_streams
from tests.runtime.thread_ranks import Sessions, bind_all, step_all, wrong_in
from tranship.runtime import session
from tranship.runtime.errors import DistributedError
from tranship.runtime.kernels.rounds import Kernels
from tranship.runtime.replay import Endpoint
from tranship.runtime.session import Receiver, State
from tranship.runtime.sharing import cuda_calls
from tranship.runtime.sharing.cuda_calls import CudaError
from tranship.runtime.streamed import StreamReplayer
from tranship.runtime.transports import links
from tranship.runtime.transports.cuda_push import CudaPushTransport
from tranship.runtime.transports.meeting import meet
from tranship.runtime.transports.protocol import Parcel, TransportError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are real GPUs")

PATIENCE = 20.0
"""Seconds after which a stream that waits is given up."""


class Engine:
    """Does what a GPU does with words and bytes at addresses; `spoil` is called with every copy."""

    def __init__(self) -> None:
        self.spoil: Callable[[int, int], None] = lambda target, size: None
        self.waits = 0

    def wait_value(self, stream: int, address: int, value: int) -> None:
        del stream
        deadline = time.monotonic() + PATIENCE
        word = ctypes.c_int32.from_address(address)
        self.waits += ctypes.c_int32(word.value - value).value < 0
        while ctypes.c_int32(word.value - value).value < 0:
            if time.monotonic() > deadline:
                raise CudaError("wait_value", "nobody came")
            time.sleep(0.001)

    def write_value(self, stream: int, address: int, value: int) -> None:
        del stream
        ctypes.c_int32.from_address(address).value = value

    def new_stream(self) -> int:
        return 1

    def close_stream(self, stream: int) -> None:
        del stream

    def copy(self, stream: int, target: int, source: int, size: int) -> None:
        del stream
        ctypes.memmove(target, source, size)
        self.spoil(target, size)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry()
    for name in ("make_offer", "open_offer"):
        monkeypatch.setattr(links, name, getattr(found, name))
    return found


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> Generator[Engine]:
    made = Engine()
    stand_in_for_streams(monkeypatch)
    for name in ("wait_value", "write_value", "copy", "new_stream", "close_stream"):
        monkeypatch.setattr(cuda_calls, name, getattr(made, name))
    monkeypatch.setattr(cuda_calls, "current", nullcontext)
    monkeypatch.setattr(cuda_calls, "synchronize", str)
    monkeypatch.setattr(session, "replayer", streamed)
    one_at_a_time(monkeypatch, [(Kernels, "begin"), (Kernels, "run")])
    yield made
    # Sessions close when they are collected, and need what stands in here.
    gc.collect()


def streamed(end: Endpoint) -> StreamReplayer:
    assert isinstance(end.transport, CudaPushTransport)
    return StreamReplayer(end, end.transport)


def bound() -> tuple[Sessions, list[Any]]:
    """Bind all ranks at once: sessions, or what was raised; and their models."""
    store = HashStore()

    def connect(member: int) -> CudaPushTransport:
        meeting = meet(store, WORLD, member, f"gpu {member}", PATIENCE)
        return CudaPushTransport(WORLD, *WORLD.seat(member), CPU, PATIENCE, meeting)

    return bind_all(bf16(), connect)


def step(sessions: Sessions, models: list[Any], version: int) -> list[Any]:
    return step_all(bf16(), sessions, models, version)


def wrong(models: list[Any], version: int) -> list[str]:
    return wrong_in(bf16(), models, version)


def test_messages_that_are_written_into_receivers_arrive_whole(
    registry: Registry, engine: Engine
) -> None:
    assert len(bf16().plan.rounds) > len(bf16().plan.staging.slots)
    sessions, models = bound()
    assert registry.open == 2 * WORLD.senders * WORLD.receivers
    for version in (1, 2, 3):
        results = step(sessions, models, version)
        assert [result for result in results if isinstance(result, BaseException)] == []
        assert len({result.digest for result in results}) == 1
        assert wrong(models, version) == []
    assert engine.waits > 0
    for own in sessions:
        own.close()
    assert registry.open == 0


def test_a_byte_that_changes_on_its_way_is_found(registry: Registry, engine: Engine) -> None:
    sessions, models = bound()

    def spoil(target: int, size: int) -> None:
        ctypes.c_uint8.from_address(target + size // 2).value ^= 1
        engine.spoil = lambda target, size: None

    engine.spoil = spoil
    results = step(sessions, models, 1)
    assert {finding.code for finding in results[0].diagnostics} == {"TS839"}
    assert [own.state for own in sessions if isinstance(own, Receiver)] == [State.TORN] * 2
    assert not [each for each in step(sessions, models, 2) if isinstance(each, BaseException)]
    assert wrong(models, 2) == []


@pytest.mark.parametrize("seat", ["sender rank 1", "receiver rank 0"])
def test_a_rank_that_cannot_share_is_heard_of_by_all(registry: Registry, seat: str) -> None:
    registry.refuses.add(seat)
    results, _ = bound()
    for result in results:
        assert isinstance(result, DistributedError)
        assert {finding.code for finding in result.diagnostics} == {"TS816"}
        assert {finding.at.file for finding in result.diagnostics if finding.at} == {seat}
    assert registry.open == 0


def test_whoever_gives_up_lets_go_on_what_waits_and_never_exchanges_again(
    registry: Registry, engine: Engine
) -> None:
    sessions, _ = bound()
    own = sessions[-1]._end.transport
    assert isinstance(own, CudaPushTransport)
    parcel = Parcel(0, torch.zeros(8, dtype=torch.uint8))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(own.exchange, 0, (), [parcel])
        while not engine.waits:
            time.sleep(0.001)
        own.abandon()
        waiting.result(timeout=PATIENCE)
    with pytest.raises(TransportError, match="an earlier step was given up"):
        own.exchange(1, (), [parcel])


def test_a_session_that_is_closed_refuses_before_anything_is_written(registry: Registry) -> None:
    sessions, models = bound()
    assert not [each for each in step(sessions, models, 1) if isinstance(each, BaseException)]
    sessions[-1].close()
    results = step(sessions, models, 2)
    assert all("the session is closed" in str(result) for result in results)
    states = [own.state for own in sessions if isinstance(own, Receiver)]
    assert states == [State.COMMITTED] * 2
    assert wrong(models, 1) == []

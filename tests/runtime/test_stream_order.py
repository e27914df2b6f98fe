"""What orders messages that are pushed: events and words alone, for streams are threads here.

Every stream does its work in a thread of its own, some of it late, so that whatever is not ordered
by an event or by a word comes in another order now and then.
"""

import ctypes
import gc
import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from tests.runtime import test_cuda_push
from tests.runtime.stand_ins import Registry, one_at_a_time
from tests.runtime.test_cuda_push import bf16, bound, step, wrong
from tranship.runtime import session, streamed
from tranship.runtime.halves import Half
from tranship.runtime.kernels.rounds import Kernels
from tranship.runtime.sharing import cuda_calls
from tranship.runtime.transports import links

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are real streams")

LATE = 0.004
"""Seconds by which half of all work is late, at most."""
PATIENCE = 20.0
STEPS = 6

Work = Callable[[], object]


class Stream:
    """Does one thing after another, in a thread; `lateness` tells how late the next one is."""

    every: dict[int, "Stream"] = {}  # noqa: RUF012 -- by what CUDA calls take for a stream
    numbers = count()

    def __init__(self, device: object = None, priority: int = 0) -> None:
        del device, priority
        self.cuda_stream = next(Stream.numbers)
        Stream.every[self.cuda_stream] = self
        self.lateness = random.Random(self.cuda_stream)
        self.work: SimpleQueue[Work] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self.work.get()
            if self.lateness.random() < 0.5:
                time.sleep(self.lateness.random() * LATE)
            work()

    def wait_event(self, event: "Event") -> None:
        self.work.put(event.reached.wait)

    def synchronize(self) -> None:
        done = threading.Event()
        self.work.put(done.set)
        done.wait()


class Event:
    """Comes when the stream on which it was last recorded has come to it."""

    def __init__(self, *_: object, **__: object) -> None:
        self.reached = threading.Event()
        self.reached.set()

    def record(self, stream: Stream) -> None:
        self.reached = threading.Event()
        stream.work.put(self.reached.set)

    def query(self) -> bool:
        return self.reached.is_set() or bool(time.sleep(0.0005))


class Current(threading.local):
    """The current stream of each thread."""

    def __init__(self) -> None:
        self.streams = [Stream()]


CURRENT = Current()


def current(*_: object) -> Stream:
    return CURRENT.streams[-1]


@contextmanager
def on(stream: Stream) -> Generator[None]:
    CURRENT.streams.append(stream)
    try:
        yield
    finally:
        CURRENT.streams.pop()


def wait_value(stream: int, address: int, value: int) -> None:
    Stream.every[stream].work.put(partial(_wait, address, value))


def _wait(address: int, value: int) -> None:
    word, start = ctypes.c_int32.from_address(address), time.monotonic()
    while ctypes.c_int32(word.value - value).value < 0 and time.monotonic() - start < PATIENCE:
        time.sleep(0.0003)


def write_value(stream: int, address: int, value: int) -> None:
    word = ctypes.c_int32.from_address(address)
    Stream.every[stream].work.put(partial(setattr, word, "value", value))


def copy(stream: int, target: int, source: int, size: int) -> None:
    Stream.every[stream].work.put(partial(ctypes.memmove, target, source, size))


def new_stream() -> int:
    return Stream().cuda_stream


def close_stream(stream: int) -> None:
    del Stream.every[stream]


def _enqueued(call: Callable[..., object]) -> Callable[..., None]:
    """Let a call be made by the stream that is current when it comes."""
    return lambda *given: current().work.put(partial(call, *given))


def _end(half: Any, before: Stream) -> None:
    """`Half.end`, whose copy to the host is a GPU's business otherwise."""
    half.stream.work.put(lambda: half._totals.copy_(half._kernels.digests.totals(half._sums)))
    half._done.record(half.stream)
    before.wait_event(half._done)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Generator[Registry]:
    found = Registry()
    for name in ("make_offer", "open_offer"):
        monkeypatch.setattr(links, name, getattr(found, name))
    cuda = {"Event": Event, "Stream": Stream, "stream": on, "current_stream": current}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for call in (wait_value, write_value, copy, new_stream, close_stream):
        monkeypatch.setattr(cuda_calls, call.__name__, call)
    monkeypatch.setattr(cuda_calls, "current", nullcontext)
    monkeypatch.setattr(cuda_calls, "synchronize", str)
    monkeypatch.setattr(session, "replayer", test_cuda_push.streamed)
    one_at_a_time(monkeypatch, [(Kernels, "begin"), (Kernels, "run")])
    for name in ("begin", "run"):
        monkeypatch.setattr(Kernels, name, _enqueued(getattr(Kernels, name)))
    monkeypatch.setattr(streamed, "derive", _enqueued(streamed.derive))
    monkeypatch.setattr(Half, "end", _end)
    yield found
    # Sessions close when they are collected, and need what stands in here.
    gc.collect()


def test_late_streams_deliver_every_version_whole(registry: Registry) -> None:
    assert len(bf16().plan.rounds) > len(bf16().plan.staging.slots)
    sessions, models = bound()
    for version in range(1, STEPS):
        results = step(sessions, models, version)
        assert [result for result in results if isinstance(result, BaseException)] == []
        assert wrong(models, version) == []


def test_without_words_what_is_unpacked_is_not_what_was_sent(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: int) -> None:
        del given

    def late(stream: int, target: int, source: int, size: int) -> None:
        Stream.every[stream].work.put(partial(time.sleep, 10 * LATE))
        copy(stream, target, source, size)

    monkeypatch.setattr(cuda_calls, "wait_value", never)
    monkeypatch.setattr(cuda_calls, "copy", late)
    sessions, models = bound()
    results = step(sessions, models, 1)
    assert all(isinstance(result, BaseException) for result in results)

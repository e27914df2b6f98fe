"""Steps of ranks that map memory, without a GPU: they are threads of one process.

Streams and events do everything at once, and what a sender offers is found in a registry. Kernels
run in the interpreter, one at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.runtime.local_jobs import WORLD, at_once, bf16
from tests.runtime.local_jobs import codes as codes_of
from tests.runtime.packed_cases import SCALES, Case
from tests.runtime.packed_cases import bound as bound_case
from tranship.runtime import mapped
from tranship.runtime.errors import DistributedError
from tranship.runtime.kernels.mapped import DirectKernels, SampleKernels
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender, State
from tranship.runtime.sharing.offer import Allocation, Offer, Region
from tranship.runtime.transports.cuda_ipc import CudaIpcTransport
from tranship.runtime.transports.meeting import meet
from tranship.runtime.transports.protocol import World
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.manifest import Side

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are real GPUs")
CPU = torch.device("cpu")


class Event:
    """An event that has always come."""

    def __init__(self, *args: object, **options: object) -> None:
        del args, options

    def record(self, stream: object) -> None:
        del stream

    def query(self) -> bool:
        return True

    def ipc_handle(self) -> bytes:
        return b"event"

    def hold(self, stream: object) -> None:
        del stream

    def close(self) -> None:
        pass


class Stream:
    """A stream on which everything is done at once."""

    def __init__(self, device: torch.device | None = None) -> None:
        del device

    def wait_event(self, event: Event) -> None:
        del event


class Registry:
    """What senders have offered; `refuses` names those that cannot, `stale` those that moved."""

    def __init__(self) -> None:
        self.offered: dict[str, Mapping[str, Tensor]] = {}
        self.refuses: set[str] = set()
        self.stale = False
        self.open = 0

    def make_offer(self, named: Mapping[str, Tensor], where: Location) -> tuple[Offer, list[int]]:
        if where.file in self.refuses:
            raise DiagnosticError([Diagnostic("TS816", "no such memory", where)])
        handle = f"{len(self.offered):0128x}"
        self.offered[handle] = named
        sizes = [tensor.numel() * tensor.element_size() for tensor in named.values()]
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        regions = {
            name: Region(0, start, size)
            for name, start, size in zip(named, starts, sizes, strict=True)
        }
        allocation = Allocation(kind="ipc", size=sum(sizes), handle=handle)
        offer = Offer(process="0" * 32, device="none", allocations=(allocation,), regions=regions)
        return offer, []

    def open_offer(self, offer: Offer, descriptors: Sequence[int], device: torch.device) -> "Held":
        del descriptors, device
        self.open += 1
        return Held(self, self.offered[str(offer.allocations[0].handle)])

    def watch(self, tensors: object) -> "Registry":
        del tensors
        return self

    def unchanged(self) -> bool:
        return not self.stale


class Held:
    """Memory that was mapped."""

    device = source = CPU

    def __init__(self, registry: Registry, named: Mapping[str, Tensor]) -> None:
        self.registry, self.named = registry, named

    def __contains__(self, name: str) -> bool:
        return name in self.named

    def memory(self, name: str) -> Tensor:
        return self.named[name].detach().reshape(-1).view(torch.uint8)

    def close(self) -> None:
        self.registry.open -= 1


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry()
    for name, value in {"Event": Event, "Stream": Stream, "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(mapped, "SharedEvent", Event)
    monkeypatch.setattr(mapped, "device_uuid", str)
    for name in ("make_offer", "open_offer", "watch"):
        monkeypatch.setattr(mapped, name, getattr(found, name))
    monkeypatch.setattr(CudaIpcTransport, "refusal", _serve)
    lock = Lock()
    for kernels in (DirectKernels, SampleKernels):
        monkeypatch.setattr(kernels, "run", _locked(kernels.run, lock))
    return found


def _serve(transport: CudaIpcTransport, device: torch.device) -> None:
    del transport, device


def _locked(call: Callable[..., None], lock: Lock) -> Callable[..., None]:
    def locked(*args: Any) -> None:
        with lock:
            call(*args)

    return locked


Sessions = list[Sender | Receiver]


def bind(store: HashStore, models: list[Any], member: int) -> Sender | Receiver:
    (side, rank), transfer = WORLD.seat(member), bf16()
    meeting = meet(store, WORLD, member, f"gpu {member}", 10.0)
    end = CudaIpcTransport(WORLD, side, rank, 10.0, meeting)
    live = live_tensors(models[member])
    if side is Side.SENDER:
        return Sender.bind(transfer.plan, transfer.sender, live, end, rank)
    return Receiver.bind(transfer.plan, transfer.receiver, live, end, rank, transfer.recipes)


def bound() -> tuple[list[Any], list[Any]]:
    """Bind all ranks at once: sessions, or what was raised; and their models."""
    models = [*bf16().models(Side.SENDER), *bf16().models(Side.RECEIVER)]
    store = HashStore()

    def attempt(member: int) -> Sender | Receiver | DistributedError:
        try:
            return bind(store, models, member)
        except DistributedError as error:
            return error

    with ThreadPoolExecutor(WORLD.size) as pool:
        return list(pool.map(attempt, range(WORLD.size))), models


def step(sessions: Sessions, models: list[Any], version: int) -> list[Any]:
    for rank in range(WORLD.senders):
        bf16().train(models[rank], rank, version)
    calls = [
        partial(own.publish if isinstance(own, Sender) else own.receive, version)
        for own in sessions
    ]
    return list(at_once(calls))


def wrong(models: list[Any], version: int) -> list[str]:
    engines = enumerate(models[WORLD.senders :])
    return [name for rank, model in engines for name in bf16().wrong(model, rank, version)]


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

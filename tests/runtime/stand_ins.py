"""What stands in for a GPU's streams, events and shared memory, for ranks that are threads.

Streams and events do everything at once, and what a rank offers is found in a registry.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor

from tranship.runtime.sharing.offer import Allocation, Offer, Region
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location

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
    """A stream on which everything is done at once; `waits` counts who waited for one."""

    cuda_stream = 0
    waits = 0

    def __init__(self, device: torch.device | None = None, priority: int = 0) -> None:
        del device, priority

    def wait_event(self, event: Event) -> None:
        del event

    def synchronize(self) -> None:
        Stream.waits += 1


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

    def address(self, name: str) -> int:
        return self.named[name].data_ptr()

    def close(self) -> None:
        self.registry.open -= 1


def stand_in_for_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CUDA's streams and events be those of this file."""
    for name, value in {"Event": Event, "Stream": Stream, "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)


def one_at_a_time(monkeypatch: pytest.MonkeyPatch, methods: Iterable[tuple[type, str]]) -> None:
    """Let one thread at a time be in any of these methods: the interpreter is not made for more."""
    lock = Lock()
    for owner, name in methods:
        monkeypatch.setattr(owner, name, _locked(getattr(owner, name), lock))


def _locked(call: Callable[..., Any], lock: Lock) -> Callable[..., Any]:
    def locked(*args: Any) -> Any:
        with lock:
            return call(*args)

    return locked

"""One rank of a transfer in a process of its own, on a GPU.

The process runs all `SCENARIOS` of a way of joining ranks, and writes what came of each step into a
folder, as JSON.
"""

import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore, Store

from tests.runtime.transfers import Transfer, bf16_transfer, fp8_transfer
from tranship.runtime.errors import DistributedError
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender
from tranship.runtime.transports.cuda_ipc import connect_cuda_ipc
from tranship.runtime.transports.cuda_push import connect_cuda_push
from tranship.runtime.transports.nccl import connect_nccl
from tranship.runtime.transports.protocol import Transport, World
from tranship.schema.manifest import Side


@dataclass(frozen=True)
class Way:
    """How `parts` ranks of each side are joined, which are dealt to so many GPUs in turn."""

    connect: Callable[..., Transport]
    parts: int
    gpus: int


WAYS = {
    "cuda_ipc": Way(connect_cuda_ipc, parts=2, gpus=1),
    "cuda_push": Way(connect_cuda_push, parts=2, gpus=1),
    "nccl": Way(connect_nccl, parts=1, gpus=2),
    "neighbors": Way(connect_nccl, parts=2, gpus=2),
    "pull": Way(connect_cuda_ipc, parts=1, gpus=2),
    "push": Way(connect_cuda_push, parts=1, gpus=2),
}
"""With `neighbors` a sender and a receiver share each of two GPUs, and NCCL joins the GPUs."""

UPDATES = 1000
CHECKED = 50
"""Every so many updates all bytes are compared with the oracle's."""

Report = dict[str, Any]
bf16, fp8 = cache(bf16_transfer), cache(fp8_transfer)


class Rank:
    """One process in one scenario, connected and bound."""

    def __init__(
        self, way: str, make: Callable[[int], Transfer], member: int, store: Store
    ) -> None:
        joined = WAYS[way]
        world = World(joined.parts, joined.parts)
        self.transfer, (self.side, self.rank) = make(joined.parts), world.seat(member)
        device = torch.device("cuda", member % joined.gpus)
        torch.cuda.set_device(device)
        self.model: nn.Module = self.transfer.models(self.side, str(device))[self.rank]
        end = joined.connect(store, world, self.side, self.rank, device, 60.0)
        live, plan = live_tensors(self.model), self.transfer.plan
        if self.side is Side.SENDER:
            self.session = Sender.bind(plan, self.transfer.sender, live, end, self.rank)
        else:
            self.session = Receiver.bind(
                plan, self.transfer.receiver, live, end, self.rank, self.transfer.recipes
            )

    def step(self, version: int, *, compare: bool = True) -> Report:
        """Publish or receive a version; report what came of it."""
        report: Report = {}
        try:
            if isinstance(self.session, Sender):
                self.transfer.train(self.model, self.rank, version)
                report["digest"] = self.session.publish(version).digest
            else:
                report["digest"] = self.session.receive(version).digest
        except DistributedError as error:
            report["error"] = str(error)
        if isinstance(self.session, Receiver) and compare:
            report["wrong"] = self.transfer.wrong(self.model, self.rank, version)
            report["state"] = self.session.state
        return report | {"committed": self.session.committed_version}


def copies(way: str, member: int, store: Store) -> Sequence[Report]:
    """Three versions, transposed, with a derived attribute."""
    rank = Rank(way, bf16, member, store)
    reports = [rank.step(version) for version in (1, 2, 5)]
    rank.session.close()
    return reports


def quantizes(way: str, member: int, store: Store) -> Sequence[Report]:
    """Two versions in FP8; blocks are cut by the senders' shards."""
    rank = Rank(way, fp8, member, store)
    reports = [rank.step(version) for version in (1, 2)]
    rank.session.close()
    return reports


def repeats(way: str, member: int, store: Store) -> Sequence[Report]:
    """Many versions; reports the first ones, the last one, and the memory in use after each."""
    rank = Rank(way, fp8, member, store)
    reports: list[Report] = []
    for version in range(UPDATES):
        report = rank.step(version, compare=version % CHECKED == 0)
        report["memory"] = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        reports.append(report)
    rank.session.close()
    return reports


def reallocates(way: str, member: int, store: Store) -> Sequence[Report]:
    """Sender 1 gives its memory back and allocates anew, in the same tensors, at other places."""
    rank = Rank(way, fp8, member, store)
    reports = [rank.step(1)]
    if member == 1:
        for parameter in rank.model.parameters():
            kept = parameter.data.cpu()
            parameter.data = torch.empty(0, device="cuda")
            torch.cuda.empty_cache()
            parameter.data = kept.cuda()
    reports.append(rank.step(2))
    rank.session.close()
    return reports


SIZES = (3, 24)
"""Layers of two models, to see what grows with the number of tensors."""
WARM = 3


def counts(way: str, member: int, store: Store) -> Sequence[Report]:
    """Counts in a steady step, per model: calls of Python functions, and allocations of torch.

    Torch raises an error where it would wait for the GPU.
    """
    return [_counted(way, layers, member, PrefixStore(f"{layers}", store)) for layers in SIZES]


def _counted(way: str, layers: int, member: int, store: Store) -> Report:
    rank = Rank(way, lambda parts: fp8_transfer(parts, layers), member, store)
    for version in range(WARM):
        rank.step(version, compare=False)
    if isinstance(rank.session, Sender):
        rank.transfer.train(rank.model, rank.rank, WARM)
        step = rank.session.publish
    else:
        step = rank.session.receive
    torch.cuda.synchronize()
    calls, seen = Counter[str](), _allocations()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sys.setprofile(lambda frame, event, _: calls.update(_called(frame, event)))
        step(WARM)
    finally:
        sys.setprofile(None)
        torch.cuda.set_sync_debug_mode("default")
    report: Report = {"calls": calls, "allocations": _allocations() - seen}
    report["rounds"], report["tensors"] = len(rank.transfer.plan.rounds), layers
    rank.session.close()
    return report


def _called(frame: FrameType, event: str) -> Iterator[str]:
    if event == "call" and not _is_rehearsed(frame):
        code = frame.f_code
        yield f"{Path(code.co_filename).name}:{code.co_name}"


def _is_rehearsed(frame: FrameType | None) -> bool:
    """Whether a frame belongs to what a rank does as often as it has time to."""
    while frame is not None:
        if frame.f_code.co_name == "_rehearse":
            return True
        frame = frame.f_back
    return False


def _allocations() -> int:
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


Scenario = Callable[[str, int, Store], Sequence[Report]]
SCENARIOS: dict[str, tuple[Scenario, ...]] = {
    "cuda_ipc": (copies, quantizes, repeats, counts, reallocates),
    "cuda_push": (copies, quantizes, counts),
    "nccl": (copies, quantizes, repeats, counts),
    "neighbors": (copies, quantizes, repeats, counts),
    "pull": (copies, quantizes, counts),
    "push": (copies, quantizes, repeats, counts),
}


def main(way: str, member: int, port: int, folder: str) -> None:
    """Run all scenarios as one member."""
    store = TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))
    for scenario in SCENARIOS[way]:
        name = scenario.__name__
        try:
            reports = scenario(way, member, PrefixStore(name, store))
        except Exception:
            reports = [{"raised": traceback.format_exc()}]
        Path(folder, f"{name}-{member}.json").write_text(json.dumps(reports), encoding="utf-8")

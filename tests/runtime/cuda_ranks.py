"""One rank of a transfer in a process of its own, on a GPU.

The process runs all `SCENARIOS` of a way of joining ranks, and writes what came of each step into a
folder, as JSON. With `cuda_ipc` four ranks share GPU 0. With `nccl` two ranks have a GPU each, and
with `peers` the same two are joined by `cuda_ipc`.
"""

import json
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
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
from tranship.runtime.transports.nccl import connect_nccl
from tranship.runtime.transports.protocol import Transport, World
from tranship.schema.manifest import Side

PARTS = {"cuda_ipc": 2, "nccl": 1, "peers": 1}
"""Ranks of each side, by the way in which they are joined."""

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
        world = World(PARTS[way], PARTS[way])
        self.transfer, (self.side, self.rank) = make(PARTS[way]), world.seat(member)
        device = torch.device("cuda", 0 if way == "cuda_ipc" else member)
        torch.cuda.set_device(device)
        self.model: nn.Module = self.transfer.models(self.side, str(device))[self.rank]
        if way == "nccl":
            end: Transport = connect_nccl(store, world, self.side, self.rank, device, 60.0)
        else:
            end = connect_cuda_ipc(store, world, self.side, self.rank, device, 60.0)
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


Scenario = Callable[[str, int, Store], Sequence[Report]]
SCENARIOS: dict[str, tuple[Scenario, ...]] = {
    "cuda_ipc": (copies, quantizes, repeats, reallocates),
    "nccl": (copies, quantizes, repeats),
    "peers": (copies, quantizes),
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

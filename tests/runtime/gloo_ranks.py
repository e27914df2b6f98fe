"""What each of four processes does in the tests of gloo: the same scenarios, one after another."""

import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.tensor import DTensor, Placement, Shard

from tests.runtime.fake_ranks import shard
from tests.runtime.odd_transports import Flipping, Passing
from tests.runtime.transfers import Transfer, bf16_transfer, fp8_transfer
from tranship.runtime.errors import DistributedError
from tranship.runtime.frameworks.fsdp import fsdp_declaration
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender
from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.protocol import MessageTransport, Parcel, World
from tranship.schema.manifest import Side
from tranship.schema.records import BufferRecord

bf16, fp8 = cache(bf16_transfer), cache(fp8_transfer)
WORLD = World(senders=2, receivers=2)
VICTIM = 3
"""The member that dies in the last scenario: receiver rank 1."""

Report: TypeAlias = dict[str, object]


class Rank:
    """One process in one scenario, connected and bound."""

    def __init__(
        self,
        transfer: Transfer,
        member: int,
        store: Store,
        timeout: float = 60.0,
        odd: Callable[[MessageTransport], MessageTransport] = lambda transport: transport,
    ) -> None:
        self.transfer, (self.side, self.rank) = transfer, WORLD.seat(member)
        self.model: nn.Module = transfer.models(self.side)[self.rank]
        end = odd(connect_gloo(store, WORLD, self.side, self.rank, timeout))
        live, plan = live_tensors(self.model), transfer.plan
        if self.side is Side.SENDER:
            self.session = Sender.bind(plan, transfer.sender, live, end, self.rank)
        else:
            self.session = Receiver.bind(
                plan, transfer.receiver, live, end, self.rank, transfer.recipes
            )

    def step(self, version: int, told: int | None = None) -> Report:
        """Publish or receive a version (under another number); report what came of it."""
        told = version if told is None else told
        try:
            if isinstance(self.session, Sender):
                self.transfer.train(self.model, self.rank, version)
                stats = self.session.publish(told)
            else:
                stats = self.session.receive(told)
            report: Report = {"digest": stats.digest}
        except DistributedError as error:
            report = {"error": str(error)}
        if isinstance(self.session, Receiver):
            report["wrong"] = self.transfer.wrong(self.model, self.rank, version)
            report["state"] = self.session.state
        return report | {"committed": self.session.committed_version}


def copies(member: int, store: Store) -> Sequence[Report]:
    """Three versions; the senders' own default group goes on working."""
    rank = Rank(bf16(), member, store)
    if rank.side is Side.SENDER:
        dist.init_process_group(
            "gloo", store=PrefixStore("trainer", store), rank=rank.rank, world_size=2
        )
    reports = [rank.step(version) for version in (1, 2, 5)]
    if rank.side is Side.SENDER:
        total = torch.ones(1)
        dist.all_reduce(total)
        reports[-1]["trainer"] = int(total)
        dist.destroy_process_group()
    return reports


def quantizes(member: int, store: Store) -> Sequence[Report]:
    """Two versions in FP8."""
    rank = Rank(fp8(), member, store)
    return [rank.step(version) for version in (1, 2)]


def disagrees(member: int, store: Store) -> Sequence[Report]:
    """Receiver 1 asks for another version than the others, once; later it has another plan."""
    transfer = bf16()
    rank = Rank(transfer, member, PrefixStore("versions", store))
    reports = [rank.step(1), rank.step(2, 3 if member == 3 else 2)]
    if member == 3:
        staging = transfer.plan.staging.model_copy(update={"budget": 1 << 30})
        transfer = replace(transfer, plan=transfer.plan.model_copy(update={"staging": staging}))
    rank = Rank(transfer, member, PrefixStore("plans", store))
    return [*reports, rank.step(1)]


def corrupts(member: int, store: Store) -> Sequence[Report]:
    """A bit changes on the way to receiver 1, in the second of three steps."""
    transfer = bf16()
    at = len(transfer.plan.rounds) + 1

    def odd(end: MessageTransport) -> MessageTransport:
        return Flipping(end, at) if member == 3 else end

    rank = Rank(transfer, member, store, odd=odd)
    return [rank.step(1), rank.step(2), rank.step(3)]


def shards(member: int, store: Store) -> Sequence[Report]:
    """Compare what is declared of sharded models with what `full_tensor` collects."""
    dist.init_process_group("gloo", store=store, rank=member, world_size=WORLD.size)
    meshes = [
        DeviceMesh("cpu", [0, 1, 2], mesh_dim_names=("dp",)),
        DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("dp", "tp")),
    ]
    reports: list[Report] = []
    for mesh in meshes:
        if mesh.get_coordinate() is None:
            continue
        model = nn.Linear(6, 10)
        tp: dict[str, Placement] = {"weight": Shard(0), "bias": Shard(0)} if mesh.ndim == 2 else {}
        fully = shard(model, mesh, tp)
        declared = fsdp_declaration(fully, rank=member, world_size=WORLD.size)
        reports.append({record.name: _holds(fully, record) for record in declared.buffers})
    dist.destroy_process_group()
    return reports


def _holds(model: nn.Module, record: BufferRecord) -> tuple[bool, tuple[int, ...]]:
    """Whether a buffer's piece is that part of the whole; and its shape."""
    parameter = model.get_parameter(record.name)
    assert isinstance(parameter, DTensor)
    (piece,) = record.pieces
    ends = zip(piece.start, piece.extent, strict=True)
    box = parameter.full_tensor()[tuple(slice(a, a + n) for a, n in ends)]
    return torch.equal(parameter.to_local(), box), record.shape


class Dying(Passing):
    """Ends the process in the middle of a step."""

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        os._exit(17)


def dies(member: int, store: Store) -> Sequence[Report]:
    """Receiver 1 ends in the first round."""
    rank = Rank(bf16(), member, store, timeout=3.0, odd=Dying if member == VICTIM else _same)
    return [rank.step(1)]


def _same(transport: MessageTransport) -> MessageTransport:
    return transport


SCENARIOS: tuple[Callable[[int, Store], Sequence[Report]], ...] = (
    copies,
    quantizes,
    disagrees,
    corrupts,
    shards,
    dies,
)


def main(member: int, port: int, folder: str) -> None:
    """Run all scenarios, and write what came of each to a file."""
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port)
    for scenario in SCENARIOS:
        name = scenario.__name__
        try:
            reports = list(scenario(member, PrefixStore(name, store)))
        except Exception:
            reports = [{"raised": traceback.format_exc()}]
        Path(folder, f"{name}-{member}.json").write_text(json.dumps(reports), encoding="utf-8")

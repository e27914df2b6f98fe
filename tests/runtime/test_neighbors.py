"""Ranks that share GPUs and are joined by NCCL, without either: ranks are threads of one process.

Streams do everything at once, NCCL is a mailbox, and a GPU is what a rank says that it has.
"""

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from queue import SimpleQueue
from threading import local
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.runtime.local_jobs import WORLD
from tests.runtime.packed_cases import Case
from tests.runtime.packed_cases import bound as bound_case
from tests.runtime.stand_ins import (
    CPU,
    Event,
    Registry,
    one_at_a_time,
    stand_in_for_streams,
)
from tests.runtime.thread_ranks import Sessions, bind_all, step_all, wrong_in
from tests.runtime.transfers import Transfer, bf16_transfer, fp8_transfer
from tranship.runtime import lending, session
from tranship.runtime.errors import DistributedError
from tranship.runtime.kernels.packed import PackedKernels
from tranship.runtime.kernels.rounds import Kernels
from tranship.runtime.lent import LentSender
from tranship.runtime.replay import Endpoint, Replayer
from tranship.runtime.session import Receiver, State
from tranship.runtime.streamed import StreamReplayer
from tranship.runtime.transports import nccl
from tranship.runtime.transports.nccl import LentTransport, NcclTransport, connect_nccl
from tranship.runtime.transports.protocol import TransportError, World

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are real GPUs")

PATIENCE = 20.0
PAIRED = ("a", "b", "a", "b")
"""The GPUs of both senders and of both receivers."""
CROSSED = ("a", "b", "b", "a")
PARTLY = ("a", "b", "c", "a")


class Mail:
    """Messages between the ranks of a communicator; `spoil` is called with each that arrives."""

    def __init__(self) -> None:
        self.boxes: dict[tuple[int, int], SimpleQueue[Tensor]] = {}
        self.sizes: set[int] = set()
        self.spoil: Callable[[Tensor], None] = lambda memory: None

    def box(self, source: int, target: int) -> SimpleQueue[Tensor]:
        assert source != target, "NCCL was asked to send within a GPU"
        return self.boxes.setdefault((source, target), SimpleQueue())


class Group:
    """One rank's end, with the calls of a ProcessGroupNCCL."""

    def __init__(self, mail: Mail, rank: int) -> None:
        self.mail, self.rank = mail, rank
        self.waiting: list[tuple[Tensor, int]] = []

    def _start_coalescing(self) -> None:
        self.waiting.clear()

    def send(self, tensors: list[Tensor], dst: int, tag: int) -> None:
        del tag
        self.mail.box(self.rank, dst).put(tensors[0].clone())

    def recv(self, tensors: list[Tensor], src: int, tag: int) -> None:
        del tag
        self.waiting.append((tensors[0], src))

    def _end_coalescing(self) -> "Group":
        for memory, source in self.waiting:
            memory.copy_(self.mail.box(source, self.rank).get(timeout=PATIENCE))
            self.mail.spoil(memory)
        return self

    def wait(self) -> None:
        pass

    def abort(self) -> None:
        pass


@pytest.fixture
def mail(monkeypatch: pytest.MonkeyPatch) -> Mail:
    made = Mail()

    def connect(store: object, member: int, size: int, timeout: float) -> Group:
        del store, timeout
        made.sizes.add(size)
        return Group(made, member)

    monkeypatch.setattr(nccl, "_connect", connect)
    monkeypatch.setattr(nccl, "device_uuid", _gpu)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    return made


_HERE = local()


def _gpu(device: torch.device) -> str:
    del device
    return str(_HERE.gpu)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry()
    stand_in_for_streams(monkeypatch)
    monkeypatch.setattr(lending, "SharedEvent", Event)
    monkeypatch.setattr(lending, "device_uuid", str)
    for name in ("make_offer", "open_offer", "watch"):
        monkeypatch.setattr(lending, name, getattr(found, name))
    monkeypatch.setattr(session, "replayer", _replayer)
    methods = [(Kernels, "begin"), (Kernels, "run"), (PackedKernels, "run")]
    one_at_a_time(monkeypatch, methods)
    return found


def _replayer(end: Endpoint) -> Replayer:
    if isinstance(end.transport, LentTransport):
        return LentSender(end, end.transport)
    assert isinstance(end.transport, NcclTransport)
    return StreamReplayer(end, end.transport, end.transport.neighbor)


def bound(transfer: Transfer, gpus: Sequence[str]) -> tuple[Sessions, list[Any]]:
    """Bind all ranks at once: sessions, or what was raised; and their models."""
    store = HashStore()

    def connect(member: int) -> NcclTransport | LentTransport:
        _HERE.gpu = gpus[member]
        return connect_nccl(store, WORLD, *WORLD.seat(member), CPU, PATIENCE)

    return bind_all(transfer, connect)


def failures(results: list[Any]) -> list[Any]:
    return [result for result in results if isinstance(result, BaseException)]


@pytest.mark.parametrize("gpus", [PAIRED, CROSSED, PARTLY])
def test_receivers_send_for_the_senders_on_their_gpus(
    registry: Registry, mail: Mail, gpus: tuple[str, ...]
) -> None:
    transfer = bf16_transfer()
    sessions, models = bound(transfer, gpus)
    assert failures(sessions) == []
    assert mail.sizes == {len(set(gpus))}
    assert registry.open == WORLD.size - len(set(gpus))
    for version in (1, 2):
        results = step_all(transfer, sessions, models, version)
        assert failures(results) == []
        assert len({result.digest for result in results}) == 1
        assert wrong_in(transfer, models, version) == []
    for own in sessions:
        own.close()
    assert registry.open == 0


def test_memory_that_a_dropped_session_has_mapped_is_unmapped(
    registry: Registry, mail: Mail
) -> None:
    sessions, _ = bound(bf16_transfer(), PAIRED)
    assert failures(sessions) == []
    assert registry.open == WORLD.receivers
    sessions.clear()
    gc.collect()
    assert registry.open == 0


def test_blocks_that_are_cut_by_senders_are_quantized_across_gpus(
    registry: Registry, mail: Mail
) -> None:
    transfer = fp8_transfer()
    sessions, models = bound(transfer, PAIRED)
    results = step_all(transfer, sessions, models, 1)
    assert failures(results) == []
    kept = transfer.expected(0, 1)
    # The interpreter rounds FP8 in another way: what is not FP8 must be equal.
    plain = {name for name, value in kept.items() if value.dtype is not torch.float8_e4m3fn}
    assert not plain & set(wrong_in(transfer, models, 1))


def beside_the_first_sender(world: World) -> list[NcclTransport | LentTransport]:
    """Connect senders on GPUs of their own, and a receiver on the first one's."""
    store, gpus = HashStore(), (*"abc"[: world.senders], "a")

    def connect(member: int) -> NcclTransport | LentTransport:
        _HERE.gpu = gpus[member]
        return connect_nccl(store, world, *world.seat(member), CPU, PATIENCE)

    with ThreadPoolExecutor(world.size) as pool:
        return list(pool.map(connect, range(world.size)))


def test_a_receiver_that_sends_for_its_neighbor_packs_its_own_scales(
    registry: Registry, mail: Mail
) -> None:
    case = Case((128, 20), 130, senders=2, cut=50, exact=True)
    job = bound_case(case, beside_the_first_sender)
    assert mail.sizes == {2}
    for version in (1, 2):
        job.assert_whole(version)


def test_a_byte_that_changes_on_its_way_is_found(registry: Registry, mail: Mail) -> None:
    transfer = bf16_transfer()
    sessions, models = bound(transfer, PAIRED)

    def spoil(memory: Tensor) -> None:
        memory[3] ^= 1
        mail.spoil = lambda memory: None

    mail.spoil = spoil
    results = step_all(transfer, sessions, models, 1)
    assert {finding.code for finding in results[0].diagnostics} == {"TS839"}
    assert [own.state for own in sessions if isinstance(own, Receiver)] == [State.TORN] * 2
    assert failures(step_all(transfer, sessions, models, 2)) == []
    assert wrong_in(transfer, models, 2) == []


def test_memory_that_was_lent_and_is_gone_tears_the_step(registry: Registry, mail: Mail) -> None:
    transfer = bf16_transfer()
    sessions, models = bound(transfer, PAIRED)
    registry.stale = True
    assert all("TS819" in str(result) for result in step_all(transfer, sessions, models, 1))


def test_a_sender_that_cannot_lend_is_heard_of_by_all(registry: Registry, mail: Mail) -> None:
    registry.refuses.add("sender rank 1")
    results, _ = bound(bf16_transfer(), PAIRED)
    for result in results:
        assert isinstance(result, DistributedError)
        assert "TS816" in {finding.code for finding in result.diagnostics}
    assert registry.open == 0


def test_two_senders_on_one_gpu_are_refused_by_name(mail: Mail) -> None:
    results, _ = bound(bf16_transfer(), ("a", "a", "b", "c"))
    for result in results:
        assert isinstance(result, TransportError)
        assert "sender rank 0 and sender rank 1 share GPU a" in str(result)

"""Between GPUs over NVLink or the network, through an NCCL communicator of tranship's own."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.distributed import distributed_c10d, is_nccl_available
from torch.distributed.distributed_c10d import PrefixStore, Store, Work

from tranship.runtime.sharing.cuda_calls import device_uuid
from tranship.runtime.transports.meeting import Meeting, meet
from tranship.runtime.transports.protocol import (
    Gathered,
    Meanwhile,
    Neighbor,
    Parcel,
    TransportError,
    World,
    nothing,
)
from tranship.schema.manifest import Side

_GRACE = 10
"""NCCL's own watchdog ends the process: it is left so many timeouts, and not needed."""


class _Group(Protocol):
    """What torch's stubs leave out of a `ProcessGroupNCCL`."""

    def send(self, tensors: list[Tensor], dst: int, tag: int) -> Work: ...
    def recv(self, tensors: list[Tensor], src: int, tag: int) -> Work: ...
    def _start_coalescing(self) -> None: ...
    def _end_coalescing(self) -> Work: ...
    def abort(self) -> None: ...


_Messages = list[tuple[int, Tensor]]
"""Memory with the rank, in the communicator, that it goes to or comes from."""


@dataclass(frozen=True, slots=True)
class NcclTransport:
    """The end of a rank that has a GPU, or speaks for a GPU. Nothing on the host waits for it.

    `ranks` are the ranks in the communicator, by member: those of one GPU have the same.
    `neighbor` is the sender on the same GPU, if this is a receiver and there is one.
    """

    world: World
    side: Side
    rank: int
    device: torch.device
    timeout: float
    group: _Group
    meeting: Meeting
    ranks: tuple[int, ...]
    neighbor: Neighbor | None

    def refusal(self, device: torch.device) -> str | None:
        """Refuse all memory but that of the GPU that is connected."""
        return _refusal(self.device, device)

    def connect(
        self, sends: Sequence[Sequence[Parcel]], receives: Sequence[Sequence[Parcel]]
    ) -> None:
        """Enqueue all rounds once on the current stream: NCCL connects at the first use.

        Raises:
            TransportError: NCCL refused.
        """
        for number, (out, back) in enumerate(zip(sends, receives, strict=True)):
            self.exchange(number, out, back)

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        """Enqueue all parcels of a round, as one operation of NCCL, on the current stream.

        Raises:
            TransportError: NCCL refused.
        """
        del number
        out = [(self._to(Side.RECEIVER, parcel), parcel.memory) for parcel in sends]
        back = [(self._to(Side.SENDER, parcel), parcel.memory) for parcel in receives]
        here = self.ranks[self.world.member(self.side, self.rank)]
        # What a neighbor sends to this rank does not leave the GPU.
        inside = zip(_of(out, here), _of(back, here), strict=True)
        try:
            for source, target in inside:
                target.copy_(source, non_blocking=True)
            self._with_others(_but(out, here), _but(back, here))
        except RuntimeError as error:
            raise TransportError(f"nccl: {error}") from error

    def _to(self, side: Side, parcel: Parcel) -> int:
        return self.ranks[self.world.member(side, parcel.peer)]

    def _with_others(self, sends: _Messages, receives: _Messages) -> None:
        if not sends and not receives:
            return
        self.group._start_coalescing()  # pyright: ignore[reportPrivateUsage] -- no other way
        for rank, memory in sends:
            self.group.send([memory], rank, 0)
        for rank, memory in receives:
            self.group.recv([memory], rank, 0)
        # It waits on the stream, not on the host.
        work = self.group._end_coalescing()  # pyright: ignore[reportPrivateUsage] -- as above
        work.wait()

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every rank the texts of all."""
        return self.meeting.talk.gather(payload, meanwhile)

    def release(self, number: int) -> None:
        """Do nothing: a parcel comes when it is waited for."""

    def disconnect(self) -> None:
        """Do nothing."""

    def abandon(self) -> None:
        """Abort the communicator, and with it the kernels that wait for a peer."""
        with suppress(RuntimeError):
            self.group.abort()


@dataclass(frozen=True, slots=True)
class LentTransport:
    """The end of a sender whose messages the receiver on its GPU packs and sends."""

    world: World
    side: Side
    rank: int
    device: torch.device
    timeout: float
    meeting: Meeting

    def refusal(self, device: torch.device) -> str | None:
        """Refuse all memory but that of the GPU that is connected."""
        return _refusal(self.device, device)

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every rank the texts of all."""
        return self.meeting.talk.gather(payload, meanwhile)


def connect_nccl(
    store: Store,
    world: World,
    side: Side,
    rank: int,
    device: torch.device,
    timeout: float = 300.0,
) -> NcclTransport | LentTransport:
    """Connect this rank with all others; every rank of both sides must call it.

    The communicator is none of torch.distributed's, which may be in use by the trainer or not even
    initialized, and has a stream of high priority. NCCL takes one process per GPU: where a sender
    and a receiver share one, the receiver maps the sender's memory, and packs and sends for both.

    Args:
        store: A store that all ranks reach, such as a `TCPStore`; nobody else may use it.
        world: Both sides' sizes.
        side: This rank's side.
        rank: This rank, within its side.
        device: This rank's GPU, which it shares with one rank of the other side at most.
        timeout: How long a rank may keep the others waiting, in seconds.

    Raises:
        TransportError: not all ranks came in time, or two of one side have the same GPU.
    """
    member = world.member(side, rank)
    meeting = meet(store, world, member, device_uuid(device), timeout)
    gpus = [address.device for address in meeting.addresses]
    try:
        _require_one_of_a_side(gpus, world)
    except TransportError:
        meeting.stop_listening()
        raise
    sharing = [n for n, gpu in enumerate(gpus) if gpu == gpus[member] and n != member]
    if sharing and side is Side.SENDER:
        return LentTransport(world, side, rank, device, timeout, meeting)
    meeting.stop_listening()
    order = list(dict.fromkeys(gpus))
    ranks = tuple(order.index(gpu) for gpu in gpus)
    try:
        with torch.cuda.device(device):
            group = _connect(PrefixStore("nccl", store), ranks[member], len(order), timeout)
    except RuntimeError as error:
        raise TransportError(f"nccl: {error}") from error
    neighbors = [Neighbor(n, Path(meeting.addresses[n].socket)) for n in sharing]
    neighbor = neighbors[0] if neighbors else None
    return NcclTransport(world, side, rank, device, timeout, group, meeting, ranks, neighbor)


def _connect(store: Store, member: int, size: int, timeout: float) -> _Group:
    if not is_nccl_available():
        raise TransportError("this PyTorch was built without NCCL")
    # A build without NCCL has no such name, and neither have the stubs that are made from it.
    made: Any = getattr(distributed_c10d, "ProcessGroupNCCL")  # noqa: B009
    options = made.Options()
    options.is_high_priority_stream = True
    options._timeout = timedelta(seconds=_GRACE * timeout)
    return cast(_Group, made(store, member, size, options))


def _require_one_of_a_side(gpus: Sequence[str], world: World) -> None:
    """Refuse two ranks of one side on one GPU: only one of a pair can speak for both."""
    taken: dict[tuple[str, Side], str] = {}
    for member, gpu in enumerate(gpus):
        side, rank = world.seat(member)
        name = f"{side} rank {rank}"
        if (gpu, side) in taken:
            raise TransportError(
                f"{taken[gpu, side]} and {name} share GPU {gpu}, and NCCL joins one rank of a side"
                " per GPU; ranks of one host are joined by cuda_ipc or cuda_push"
            )
        taken[gpu, side] = name


def _refusal(own: torch.device, other: torch.device) -> str | None:
    return None if own == other else f"nccl sends from the memory of {own}, not of {other}"


def _of(messages: _Messages, rank: int) -> list[Tensor]:
    return [memory for peer, memory in messages if peer == rank]


def _but(messages: _Messages, rank: int) -> _Messages:
    return [message for message in messages if message[0] != rank]

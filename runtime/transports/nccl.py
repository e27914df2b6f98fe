"""Between GPUs over NVLink or the network, through an NCCL communicator of tranship's own."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.distributed import distributed_c10d, is_nccl_available
from torch.distributed.distributed_c10d import PrefixStore, Store, Work

from tranship.runtime.sharing.cuda_calls import device_uuid
from tranship.runtime.transports.meeting import Address, Meeting, meet
from tranship.runtime.transports.protocol import (
    Gathered,
    Meanwhile,
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


@dataclass(frozen=True, slots=True)
class NcclTransport:
    """One rank's end. Exchanges are enqueued; nothing on the host waits for them."""

    world: World
    side: Side
    device: torch.device
    timeout: float
    group: _Group
    meeting: Meeting

    def refusal(self, device: torch.device) -> str | None:
        """Refuse all memory but that of the GPU that is connected."""
        if device != self.device:
            return f"nccl sends from the memory of {self.device}, not of {device}"
        return None

    def connect(self, rounds: Sequence[Sequence[Parcel]]) -> None:
        """Enqueue all rounds once on the current stream: NCCL connects at the first use.

        Raises:
            TransportError: NCCL refused.
        """
        for number, parcels in enumerate(rounds):
            sends = self.side is Side.SENDER
            self.exchange(number, parcels if sends else (), () if sends else parcels)

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        """Enqueue all parcels of a round, as one operation of NCCL, on the current stream.

        Raises:
            TransportError: NCCL refused.
        """
        del number
        if not sends and not receives:
            return
        other = Side.RECEIVER if self.side is Side.SENDER else Side.SENDER
        try:
            self.group._start_coalescing()  # pyright: ignore[reportPrivateUsage] -- no other way
            for parcel in sends:
                self.group.send([parcel.memory], self.world.member(other, parcel.peer), 0)
            for parcel in receives:
                self.group.recv([parcel.memory], self.world.member(other, parcel.peer), 0)
            # It waits on the stream, not on the host.
            work = self.group._end_coalescing()  # pyright: ignore[reportPrivateUsage] -- as above
            work.wait()
        except RuntimeError as error:
            raise TransportError(f"nccl: {error}") from error

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


def connect_nccl(
    store: Store,
    world: World,
    side: Side,
    rank: int,
    device: torch.device,
    timeout: float = 300.0,
) -> NcclTransport:
    """Connect this rank with all others; every rank of both sides must call it.

    The communicator is none of torch.distributed's, which may be in use by the trainer or not even
    initialized, and has a stream of high priority. Every rank needs a GPU of its own.

    Args:
        store: A store that all ranks reach, such as a `TCPStore`; nobody else may use it.
        world: Both sides' sizes.
        side: This rank's side.
        rank: This rank, within its side.
        device: This rank's GPU.
        timeout: How long a rank may keep the others waiting, in seconds.

    Raises:
        TransportError: not all ranks came in time, or two of them have the same GPU.
    """
    member = world.member(side, rank)
    meeting = meet(store, world, member, device_uuid(device), timeout)
    meeting.stop_listening()
    _require_own_gpus(meeting.addresses, world)
    try:
        with torch.cuda.device(device):
            group = _connect(PrefixStore("nccl", store), member, world.size, timeout)
    except RuntimeError as error:
        raise TransportError(f"nccl: {error}") from error
    return NcclTransport(world, side, device, timeout, group, meeting)


def _connect(store: Store, member: int, size: int, timeout: float) -> _Group:
    if not is_nccl_available():
        raise TransportError("this PyTorch was built without NCCL")
    # A build without NCCL has no such name, and neither have the stubs that are made from it.
    made: Any = getattr(distributed_c10d, "ProcessGroupNCCL")  # noqa: B009
    options = made.Options()
    options.is_high_priority_stream = True
    options._timeout = timedelta(seconds=_GRACE * timeout)
    return cast(_Group, made(store, member, size, options))


def _require_own_gpus(addresses: Sequence[Address], world: World) -> None:
    """Refuse two ranks on one GPU, as NCCL does, but say which."""
    taken: dict[str, str] = {}
    for member, address in enumerate(addresses):
        name = "{} rank {}".format(*world.seat(member))
        if address.device in taken:
            raise TransportError(
                f"{taken[address.device]} and {name} share GPU {address.device}, and NCCL joins one"
                " rank per GPU; ranks that share GPUs are joined by cuda_ipc"
            )
        taken[address.device] = name

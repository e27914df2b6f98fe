"""Ranks of one host that map one another's GPU memory, and need no messages for weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.distributed_c10d import Store

from tranship.runtime.sharing.cuda_calls import device_uuid
from tranship.runtime.transports.meeting import Meeting, meet
from tranship.runtime.transports.protocol import Gathered, Meanwhile, TransportError, World, nothing
from tranship.schema.manifest import Side


@dataclass(frozen=True, slots=True)
class CudaIpcTransport:
    """One rank's end."""

    world: World
    side: Side
    rank: int
    timeout: float
    meeting: Meeting

    def refusal(self, device: torch.device) -> str | None:
        """Refuse all memory but a GPU's."""
        if device.type != "cuda":
            return f"cuda_ipc maps the memory of GPUs, not of {device}"
        return None

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every rank the texts of all."""
        return self.meeting.talk.gather(payload, meanwhile)

    def socket(self, sender: int) -> Path:
        """Return where a sender listens."""
        return Path(self.meeting.addresses[self.world.member(Side.SENDER, sender)].socket)


def connect_cuda_ipc(
    store: Store,
    world: World,
    side: Side,
    rank: int,
    device: torch.device,
    timeout: float = 300.0,
) -> CudaIpcTransport:
    """Meet all other ranks, which must be on this host; every rank of both sides must call it.

    Memory is offered over Unix sockets whose ends see each other's user. The store carries their
    paths and no handle. That a rank is gone is found `timeout` seconds after it was needed.

    Args:
        store: A store that all ranks reach, such as a `TCPStore`; nobody else may use it.
        world: Both sides' sizes.
        side: This rank's side.
        rank: This rank, within its side.
        device: This rank's GPU; others may have the same.
        timeout: How long a rank may keep the others waiting, in seconds.

    Raises:
        TransportError: not all ranks came in time, or they are not on one host.
    """
    meeting = meet_on_one_host(store, world, world.member(side, rank), device, timeout)
    return CudaIpcTransport(world, side, rank, timeout, meeting)


def meet_on_one_host(
    store: Store, world: World, member: int, device: torch.device, timeout: float
) -> Meeting:
    """Meet all other ranks, and make sure that they are on this host.

    Raises:
        TransportError: not all ranks came in time, or some are elsewhere.
    """
    meeting = meet(store, world, member, device_uuid(device), timeout)
    here = meeting.addresses[member].host
    elsewhere = [n for n, other in enumerate(meeting.addresses) if other.host != here]
    if elsewhere:
        meeting.stop_listening()
        names = ", ".join("{} rank {}".format(*world.seat(number)) for number in elsewhere)
        raise TransportError(f"memory is shared by ranks of one host; on another are {names}")
    return meeting

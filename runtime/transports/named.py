"""Transports by their names, for those who are told which one to take."""

from datetime import timedelta
from typing import Protocol

import torch
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore

from tranship.runtime.transports.cuda_ipc import connect_cuda_ipc
from tranship.runtime.transports.cuda_push import connect_cuda_push
from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.nccl import connect_nccl
from tranship.runtime.transports.protocol import Transport, TransportError, World
from tranship.schema.manifest import Side

_ON_GPUS = {
    "nccl": connect_nccl,
    "cuda_ipc": connect_cuda_ipc,
    "cuda_push": connect_cuda_push,
}

TRANSPORTS = ("gloo", *_ON_GPUS)


class MeetingPlace(Protocol):
    """Where and how ranks meet: a prefix in a store that a trainer serves, and a transport."""

    @property
    def host(self) -> str:
        """Where the store is served."""
        ...

    @property
    def port(self) -> int:
        """And at which port."""
        ...

    @property
    def name(self) -> str:
        """The prefix that this meeting has there."""
        ...

    @property
    def transport(self) -> str:
        """One of `TRANSPORTS`."""
        ...

    @property
    def timeout(self) -> float:
        """Seconds for which a rank may keep the others waiting."""
        ...


def connect_receiver(
    place: MeetingPlace, world: World, rank: int, device: torch.device
) -> Transport:
    """Let a receiver meet the ranks of both sides.

    Raises:
        TransportError: the store cannot be reached, or not all came in time.
    """
    timeout = place.timeout
    limit = timedelta(seconds=timeout)
    try:
        served = TCPStore(place.host, place.port, is_master=False, timeout=limit)
        store = PrefixStore(place.name, served)
        if place.transport == "gloo":
            return connect_gloo(store, world, Side.RECEIVER, rank, timeout)
        connect = _ON_GPUS[place.transport]
        return connect(store, world, Side.RECEIVER, rank, device, timeout)
    except RuntimeError as error:
        where, reason = f"{place.host}:{place.port}", f"{error}".partition("\n")[0]
        raise TransportError(f"meeting {place.name!r} at {where} failed: {reason}") from error

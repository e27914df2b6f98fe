"""Between processes over TCP, through a gloo group of tranship's own. Memory lies on the CPU."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo
from torch.distributed.distributed_c10d import PrefixStore, Store, Work

from tranship.runtime.transports.control import Control
from tranship.runtime.transports.protocol import (
    Gathered,
    Meanwhile,
    Parcel,
    TransportError,
    World,
    nothing,
)
from tranship.schema.manifest import Side


class _Group(Protocol):
    """What torch's stubs leave out of a `ProcessGroupGloo`."""

    def send(self, tensors: list[Tensor], dst: int, tag: int) -> Work: ...
    def recv(self, tensors: list[Tensor], src: int, tag: int) -> Work: ...


@dataclass(frozen=True, slots=True)
class GlooTransport:
    """One rank's end. A round is exchanged within `timeout` seconds, or fails."""

    world: World
    side: Side
    timeout: float
    group: _Group
    control: Control

    def refusal(self, device: torch.device) -> str | None:
        """Refuse all memory but the CPU's."""
        if device.type != "cpu":
            return f"gloo sends from the CPU's memory, not from {device}"
        return None

    def connect(
        self, sends: Sequence[Sequence[Parcel]], receives: Sequence[Sequence[Parcel]]
    ) -> None:
        """Do nothing: ranks are connected."""

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        """Send and receive all parcels of a round.

        Raises:
            TransportError: a peer is gone, or did not answer in time.
        """
        del number
        deadline = time.monotonic() + self.timeout
        other = Side.RECEIVER if self.side is Side.SENDER else Side.SENDER
        try:
            works = [
                self.group.recv([parcel.memory], self.world.member(other, parcel.peer), 0)
                for parcel in receives
            ]
            works += [
                self.group.send([parcel.memory], self.world.member(other, parcel.peer), 0)
                for parcel in sends
            ]
            for work in works:
                # A timeout of 0 would mean gloo's own.
                left = max(deadline - time.monotonic(), 0.001)
                work.wait(timedelta(seconds=left))
        except RuntimeError as error:
            raise TransportError(f"gloo: {error}") from error

    def release(self, number: int) -> None:
        """Do nothing: a parcel comes when it is waited for."""

    def disconnect(self) -> None:
        """Do nothing."""

    def abandon(self) -> None:
        """Do nothing: an exchange ends by itself, in time."""

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every rank the texts of all; see `Control.gather`."""
        return self.control.gather(payload, meanwhile)


def connect_gloo(
    store: Store, world: World, side: Side, rank: int, timeout: float = 300.0
) -> GlooTransport:
    """Connect this rank with all others; every rank of both sides must call it.

    The group is not one of torch.distributed's, which may be in use by the trainer or not even
    initialized. That a rank is gone is found `timeout` seconds after it was needed, and the others
    hear of it in 2 more timeouts.

    Args:
        store: A store that all ranks reach, such as a `TCPStore`; nobody else may use it.
        world: Both sides' sizes.
        side: This rank's side.
        rank: This rank, within its side.
        timeout: How long a rank may keep the others waiting, in seconds.

    Raises:
        TransportError: not all ranks came in time.
    """
    member = world.member(side, rank)
    control = Control(PrefixStore("control", store), member, world.size, 2 * timeout)
    missing = [number for number, text in enumerate(control.gather("")) if text is None]
    if missing:
        names = ", ".join("{} rank {}".format(*world.seat(number)) for number in missing)
        raise TransportError(f"not connected within {2 * timeout:g} s: {names}")
    limit = timedelta(seconds=timeout)
    try:
        group = ProcessGroupGloo(PrefixStore("gloo", store), member, world.size, limit)
    except RuntimeError as error:
        raise TransportError(f"gloo: {error}") from error
    return GlooTransport(world, side, timeout, cast(_Group, group), control)

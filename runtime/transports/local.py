"""All ranks in one process, one thread each: for tests and dry runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import torch
from torch import Tensor
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

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

Mailboxes = Mapping[tuple[int, int], SimpleQueue[Tensor]]
"""For every sender and receiver the bytes on their way from the one to the other, in order."""


@dataclass(frozen=True, slots=True)
class LocalTransport:
    """One rank's end. It waits for a parcel for `timeout` seconds."""

    world: World
    side: Side
    rank: int
    timeout: float
    mailboxes: Mailboxes
    control: Control

    def refusal(self, device: torch.device) -> str | None:
        """Refuse nothing: bytes on any device can be copied."""
        del device
        return None

    def connect(
        self, sends: Sequence[Sequence[Parcel]], receives: Sequence[Sequence[Parcel]]
    ) -> None:
        """Do nothing: ranks are connected."""

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        """Copy all parcels.

        Raises:
            TransportError: a peer sent nothing in time, or bytes of another number.
        """
        del number
        for parcel in sends:
            self._mailbox(parcel.peer).put(parcel.memory.clone())
        for parcel in receives:
            try:
                sent = self._mailbox(parcel.peer).get(timeout=self.timeout)
            except Empty:
                message = f"sender rank {parcel.peer} sent nothing within {self.timeout:g} s"
                raise TransportError(message) from None
            if len(sent) != len(parcel.memory):
                message = f"{len(sent)} bytes came instead of {len(parcel.memory)}"
                raise TransportError(message)
            parcel.memory.copy_(sent)

    def release(self, number: int) -> None:
        """Do nothing: a parcel comes when it is waited for."""

    def disconnect(self) -> None:
        """Do nothing."""

    def abandon(self) -> None:
        """Do nothing: an exchange ends by itself, in time."""

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every rank the texts of all; see `Control.gather`."""
        return self.control.gather(payload, meanwhile)

    def _mailbox(self, peer: int) -> SimpleQueue[Tensor]:
        pair = (self.rank, peer) if self.side is Side.SENDER else (peer, self.rank)
        return self.mailboxes[pair]


Ends = tuple[LocalTransport, ...]


def connect_locally(world: World, timeout: float = 60.0) -> tuple[Ends, Ends]:
    """Return the ends of all senders, and those of all receivers, in order of their ranks.

    A rank waits for a parcel for `timeout` seconds, and for the texts of others twice as long.
    """
    store = HashStore()
    mailboxes: dict[tuple[int, int], SimpleQueue[Tensor]] = {
        (sender, receiver): SimpleQueue()
        for sender in range(world.senders)
        for receiver in range(world.receivers)
    }
    controls = [Control(store, member, world.size, 2 * timeout) for member in range(world.size)]
    ends = tuple(
        LocalTransport(world, *world.seat(member), timeout, mailboxes, control)
        for member, control in enumerate(controls)
    )
    return ends[: world.senders], ends[world.senders :]

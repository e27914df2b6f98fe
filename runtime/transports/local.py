"""All ranks in one process, one thread each: for tests and dry runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from torch import Tensor
from torch.distributed import HashStore

from tranship.runtime.transports.control import Control
from tranship.runtime.transports.protocol import Gathered, Parcel, TransportError, World
from tranship.schema.manifest import Side

_Mailbox = SimpleQueue[Tensor]


def connect_locally(
    world: World, timeout: float = 60.0
) -> tuple[tuple["LocalTransport", ...], tuple["LocalTransport", ...]]:
    """Return the ends of the senders and of the receivers, in order of their ranks.

    A rank waits for a parcel for `timeout` seconds, and for a control message twice as long.
    """
    store = HashStore()
    mailboxes = {
        (sender, receiver): _Mailbox()
        for sender in range(world.senders)
        for receiver in range(world.receivers)
    }
    ends = tuple(
        LocalTransport(world, *world.seat(member), timeout, mailboxes, _control(store, world, member, timeout))
        for member in range(world.size)
    )
    return ends[: world.senders], ends[world.senders :]

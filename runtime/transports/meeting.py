"""How ranks find one another, and the fastest way in which all of them can talk."""

import os
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError
from torch.distributed.distributed_c10d import PrefixStore, Store

from tranship.runtime.sharing.channel import Channel, ChannelError
from tranship.runtime.sharing.sockets import Listener, connect, listen, private_directory
from tranship.runtime.transports.control import Control
from tranship.runtime.transports.hub import join_hub, open_hub
from tranship.runtime.transports.protocol import Gathered, Meanwhile, TransportError, World, nothing
from tranship.schema.manifest import Frozen

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Talk(Protocol):
    """Gives every rank the texts of all."""

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every rank the texts of all, also where some ranks are gone."""
        ...


class Address(Frozen):
    """Where a rank is found: the host's boot, the UUID of its GPU, and a socket on that host."""

    host: str
    device: str
    socket: str


@dataclass(frozen=True, slots=True)
class Meeting:
    """What ranks know of one another. `listener` is this rank's, `addresses` are of all members."""

    addresses: tuple[Address, ...]
    listener: Listener
    talk: Talk

    def stop_listening(self) -> None:
        """Remove this rank's socket: nobody is to connect any more. May be repeated."""
        _stop(self.listener)


def _listen() -> Listener:
    """Listen in a directory of its own, which is removed if nobody has stopped listening."""
    directory = private_directory()
    try:
        listener = listen(directory)
    except BaseException:
        directory.rmdir()
        raise
    # A transport may be dropped before anything is bound to it, or the process end.
    weakref.finalize(listener, _remove, listener.path, os.getpid())
    return listener


def _stop(listener: Listener) -> None:
    listener.close()
    _remove(listener.path, os.getpid())


def _remove(path: Path, owner: int) -> None:
    # A fork has what its parent had, and must leave it alone when it ends.
    if os.getpid() == owner:
        path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            path.parent.rmdir()


def meet(store: Store, world: World, member: int, device: str, timeout: float) -> Meeting:
    """Meet all other ranks; every rank of both sides must call it.

    Ranks of one host talk over Unix sockets, whose ends see each other's user; others by way of
    the store.

    Args:
        store: A store that all ranks reach; nobody else may use it.
        world: Both sides' sizes.
        member: This rank among all.
        device: The UUID of its GPU.
        timeout: How long a rank may keep the others waiting, in seconds.

    Raises:
        TransportError: not all ranks came in time.
    """
    listener = _listen()
    try:
        return _meet(store, world, member, device, timeout, listener)
    except BaseException:
        _stop(listener)
        raise


_STAGES = 3
"""How many timeouts a rank is waited for where all talk: what it did before may have taken two."""


def _meet(
    store: Store, world: World, member: int, device: str, timeout: float, listener: Listener
) -> Meeting:
    patience = _STAGES * timeout
    control = Control(PrefixStore("control", store), member, world.size, patience)
    host = _BOOT_ID.read_text(encoding="ascii").strip()
    own = Address(host=host, device=device, socket=str(listener.path))
    addresses = _addresses(control.gather(own.model_dump_json()), world)
    if len({address.host for address in addresses}) > 1:
        return Meeting(addresses, listener, control)
    # A receiver is the last to be done with a step, and as the hub the first to know of all.
    hub = world.size - 1
    if member == hub:
        talk: Talk = open_hub(listener, member, world.size, patience)
    else:
        talk = join_hub(
            _connected(Path(addresses[hub].socket), patience), member, world.size, patience
        )
    # Until all have joined, nobody may knock at the hub's socket with anything else.
    talk.gather("")
    return Meeting(addresses, listener, talk)


def _connected(socket: Path, timeout: float) -> Channel:
    try:
        return connect(socket, timeout)
    except ChannelError as error:
        raise TransportError(f"no way to the hub: {error}") from error


def _addresses(texts: Gathered, world: World) -> tuple[Address, ...]:
    found: list[Address] = []
    for member, text in enumerate(texts):
        name = "{} rank {}".format(*world.seat(member))
        if text is None:
            raise TransportError(f"{name} did not come in time")
        try:
            found.append(Address.model_validate_json(text))
        except ValidationError as error:
            raise TransportError(f"{name} has no address: {error.errors()[0]['msg']}") from error
    return tuple(found)

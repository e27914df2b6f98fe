"""Small texts between all ranks of one host, over Unix sockets: tens of microseconds a hop.

One member, the hub, is connected with all others, collects their texts and hands all of them out.
A member that is gone is noticed at once.
"""

import time
from dataclasses import dataclass, field

from pydantic import Field

from tranship.runtime.sharing.channel import Channel, ChannelError, Listener
from tranship.runtime.transports.protocol import Gathered, Meanwhile, TransportError, nothing
from tranship.schema.manifest import Frozen

SPIN = 0.05
"""Seconds for which a member waits without sleeping: longer than most steps take."""


class _Knock(Frozen):
    member: int = Field(ge=0)


class _Said(Frozen):
    text: str


class _All(Frozen):
    texts: tuple[str | None, ...]


@dataclass(slots=True)
class Hub:
    """The hub's end: a channel to every other member that is left, by member."""

    member: int
    size: int
    timeout: float
    channels: dict[int, Channel] = field(default_factory=dict[int, Channel])

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every member the texts of all.

        A member that has given up meanwhile counts as gone: it would not believe what it is told.
        """
        meanwhile()
        texts: list[str | None] = [None] * self.size
        texts[self.member] = payload
        deadline = time.monotonic() + self.timeout
        for member, channel in sorted(self.channels.items()):
            left = max(deadline - time.monotonic(), 0.0)
            try:
                texts[member] = channel.receive(_Said, left, spin=SPIN)[0].text
            except ChannelError:
                del self.channels[member]
        for member in [n for n, channel in self.channels.items() if not channel.is_open()]:
            texts[member] = None
            del self.channels[member]
        everything = _All(texts=tuple(texts))
        for member, channel in sorted(self.channels.items()):
            try:
                channel.send(everything)
            except ChannelError:
                del self.channels[member]
        return everything.texts


@dataclass(frozen=True, slots=True)
class Spoke:
    """Another member's end."""

    channel: Channel
    timeout: float

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every member the texts of all.

        Raises:
            TransportError: the hub is gone.
        """
        try:
            self.channel.send(_Said(text=payload))
            meanwhile()
            # The hub waits that long for all others, once it has come itself.
            return self.channel.receive(_All, 2 * self.timeout, spin=SPIN)[0].texts
        except ChannelError as error:
            raise TransportError(f"no answer from {error}") from error


def open_hub(listener: Listener, member: int, size: int, timeout: float) -> Hub:
    """Be the hub, as one of `size` members, and wait for all others.

    Raises:
        TransportError: not all came in time.
    """
    hub = Hub(member, size, timeout)
    try:
        while len(hub.channels) < size - 1:
            channel = listener.accept(timeout)
            hub.channels[channel.receive(_Knock, timeout)[0].member] = channel
    except ChannelError as error:
        raise TransportError(f"not all ranks came: {error}") from error
    return hub


def join_hub(channel: Channel, member: int, timeout: float) -> Spoke:
    """Tell the hub who this is.

    Raises:
        TransportError: it is gone.
    """
    try:
        channel.send(_Knock(member=member))
    except ChannelError as error:
        raise TransportError(f"no way to the hub: {error}") from error
    return Spoke(channel, timeout)

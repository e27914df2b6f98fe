"""Small texts between all ranks of one host, over Unix sockets: tens of microseconds a hop.

One member, the hub, is connected with all others, collects their texts and hands all of them out.
A member that is gone is noticed at once.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from pydantic import Field

from tranship.runtime.sharing.channel import MAX_BYTES, Channel, ChannelError
from tranship.runtime.sharing.sockets import Listener
from tranship.runtime.sharing.together import receive_all, send_all
from tranship.runtime.transports.protocol import Gathered, Meanwhile, TransportError, nothing
from tranship.schema.manifest import Frozen

SPIN = 0.05
"""Seconds for which a member waits without sleeping: longer than most steps take."""


class _Knock(Frozen):
    member: int = Field(ge=0)


_GONE = -1
"""Stands for the length of the text of a member that is gone."""


def joined(texts: Sequence[str | None]) -> bytes:
    """Return texts as bytes: all lengths as int64, then what there is."""
    parts = [None if text is None else text.encode() for text in texts]
    lengths = [_GONE if part is None else len(part) for part in parts]
    return struct.pack(f"<{len(parts)}q", *lengths) + b"".join(part or b"" for part in parts)


def parted(data: bytes, count: int) -> Gathered:
    """Return the `count` texts of which `joined` has made `data`.

    Raises:
        ValueError: they are no such texts.
    """
    head = struct.calcsize(f"<{count}q")
    if len(data) < head:
        raise ValueError("it is too short")
    lengths = struct.unpack(f"<{count}q", data[:head])
    ends = list(accumulate((max(length, 0) for length in lengths), initial=head))
    if min(lengths, default=0) < _GONE or ends[-1] != len(data):
        raise ValueError("its lengths are not those of its texts")
    return tuple(
        None if length == _GONE else data[start:end].decode()
        for length, (start, end) in zip(lengths, pairwise(ends), strict=True)
    )


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
        found, gone = receive_all(self.channels, self.timeout, spin=SPIN)
        gone |= {n: _GONE_SINCE for n in found if not self.channels[n].is_open()}
        self._forget(gone)
        texts: list[str | None] = [None] * self.size
        for member in self.channels:
            texts[member] = found[member].decode(errors="replace")
        texts[self.member] = payload
        everything = joined(texts)
        if len(everything) > MAX_BYTES:
            # Nobody can be told that much: all are to come to the same conclusion.
            texts = [None] * self.size
            everything = joined(texts)
        self._forget(send_all(self.channels, everything, self.timeout))
        return tuple(texts)

    def _forget(self, members: Iterable[int]) -> None:
        for member in members:
            self.channels.pop(member).close()


_GONE_SINCE = ChannelError("the other end has closed the channel")


@dataclass(frozen=True, slots=True)
class Spoke:
    """Another member's end."""

    channel: Channel
    size: int
    timeout: float

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every member the texts of all.

        Raises:
            TransportError: the hub is gone.
        """
        try:
            self.channel.send_bytes(payload.encode())
            meanwhile()
            # The hub waits that long for all others, once it has come itself.
            data = self.channel.receive_bytes(2 * self.timeout, spin=SPIN)
            return parted(data, self.size)
        except (ChannelError, ValueError) as error:
            raise TransportError(f"no answer from the last receiver rank: {error}") from error
        except BaseException:
            # An answer that is left there would be taken for that of the next call.
            self.channel.close()
            raise


def open_hub(listener: Listener, member: int, size: int, timeout: float) -> Hub:
    """Be the hub, as one of `size` members, and wait for all others; then for any, as long.

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


def join_hub(channel: Channel, member: int, size: int, timeout: float) -> Spoke:
    """Tell the hub who this is.

    Raises:
        TransportError: it is gone.
    """
    try:
        channel.send(_Knock(member=member))
    except ChannelError as error:
        raise TransportError(f"no way to the hub: {error}") from error
    return Spoke(channel, size, timeout)

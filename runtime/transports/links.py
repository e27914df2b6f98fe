"""How the ranks of `cuda_push` come to reach one another's memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tranship.runtime.bind import location
from tranship.runtime.overlap import Span, span
from tranship.runtime.sharing.channel import Channel, ChannelError
from tranship.runtime.sharing.descriptors import close_all
from tranship.runtime.sharing.mapping import Mapped, open_offer
from tranship.runtime.sharing.offer import Offer, make_offer
from tranship.runtime.sharing.sockets import connect
from tranship.runtime.transports.meeting import Meeting
from tranship.runtime.transports.protocol import Parcel, World
from tranship.schema.manifest import Frozen, Side

WORD_BYTES = 4
_WORDS = "words"

Rounds = Sequence[Sequence[Parcel]]


class Place(Frozen):
    """What a rank gives to another: the memory of its words and, on a receiver, of all messages.

    `after` tells, by round, which earlier round must be unpacked before its messages are written,
    and -1 where there is none. Without an offer a rank has nothing to give, and tells all ranks
    why.
    """

    rank: int
    offer: Offer | None
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A peer's memory, mapped here.

    Attributes:
        mapped: the mapping.
        word: address of the peer's word in which this rank counts.
        memory: addresses of the messages that a receiver gets from this rank, by round.
        after: see `Place`.
    """

    mapped: Mapped
    word: int
    memory: Mapping[int, int]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Party:
    """The rank that connects; in `words`, int32 `[ranks]`, peers count by their rank."""

    world: World
    side: Side
    rank: int
    device: torch.device
    timeout: float
    meeting: Meeting
    words: Tensor


def link_all(own: Party, rounds: Rounds) -> dict[int, Link]:
    """Map the memory of all peers that messages go to, or come from, and give them this rank's.

    Raises:
        DiagnosticError: TS816, memory cannot be shared; TS817, it cannot be mapped; TS818.
        ChannelError: a peer is gone.
        CudaError: memory cannot be mapped.
        OSError: more files would be open than this process may have.
    """
    peers = sorted({parcel.peer for parcels in rounds for parcel in parcels})
    links: dict[int, Link] = {}
    failures: list[Exception] = []
    offer, descriptors = None, list[int]()
    try:
        offer, descriptors = make_offer(_named(own, rounds), location(own.side, own.rank))
    except Exception as error:
        failures.append(error)
    place = Place(rank=own.rank, offer=offer, after=_after(own, rounds))
    try:
        for peer in peers:
            # A peer is to hear of this rank even if nothing comes of it.
            other, received = _met(own, peer, place, descriptors)
            try:
                if other.offer is not None:
                    links[other.rank] = _link(own, other, other.offer, received)
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]
    except BaseException:
        for link in links.values():
            link.mapped.close()
        raise
    finally:
        close_all(descriptors)
    return links


def _named(own: Party, rounds: Rounds) -> dict[str, Tensor]:
    named = {_WORDS: own.words}
    if own.side is Side.RECEIVER:
        for number, parcels in enumerate(rounds):
            named |= {_name(number, parcel.peer): parcel.memory for parcel in parcels}
    return named


def _name(number: int, sender: int) -> str:
    return f"round {number} from {sender}"


def _after(own: Party, rounds: Rounds) -> tuple[int, ...]:
    """Return for each round the last earlier one with memory in common, on a receiver."""
    if own.side is Side.SENDER:
        return ()
    spans = [[span(parcel.memory) for parcel in parcels] for parcels in rounds]
    return tuple(
        max((n for n in range(number) if _meet(spans[n], spans[number])), default=-1)
        for number in range(len(rounds))
    )


def _meet(left: Sequence[Span], right: Sequence[Span]) -> bool:
    return any(a[0] < b[1] and b[0] < a[1] for a in left for b in right)


def _met(
    own: Party, peer: int, place: Place, descriptors: Sequence[int]
) -> tuple[Place, list[int]]:
    """Exchange places with a peer: a receiver knocks, and a sender hears in any order."""
    whom = f"sender rank {peer}" if own.side is Side.RECEIVER else "a receiver rank"
    try:
        with closing(_reached(own, peer)) as channel:
            channel.send(place, descriptors)
            return channel.receive(Place, own.timeout)
    except ChannelError as error:
        raise ChannelError(f"{whom}: {error}") from error


def _reached(own: Party, peer: int) -> Channel:
    if own.side is Side.SENDER:
        return own.meeting.listener.accept(own.timeout)
    member = own.world.member(Side.SENDER, peer)
    return connect(Path(own.meeting.addresses[member].socket), own.timeout)


def _link(own: Party, other: Place, offer: Offer, descriptors: Sequence[int]) -> Link:
    mapped = open_offer(offer, descriptors, own.device)
    try:
        word = mapped.address(_WORDS) + own.rank * WORD_BYTES
        return Link(mapped, word, dict(_memory(own, mapped, len(other.after))), other.after)
    except KeyError:
        mapped.close()
        raise


def _memory(own: Party, mapped: Mapped, rounds: int) -> Iterator[tuple[int, int]]:
    for number in range(rounds):
        if (name := _name(number, own.rank)) in mapped:
            yield number, mapped.address(name)

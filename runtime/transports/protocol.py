"""What the session needs of a transport."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tranship.schema.manifest import Side

Gathered = tuple[str | None, ...]
"""One text per rank, senders first; None for a rank that was not heard of in time."""


Meanwhile = Callable[[], None]
"""Something to do while others are waited for; it must not raise."""


def nothing() -> None:
    """Do nothing meanwhile."""


class TransportError(RuntimeError):
    """Bytes could not be exchanged. The transport is of no use any more: connect a new one."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Bytes to or from rank `peer` of the other side: a contiguous uint8 tensor of one dim."""

    peer: int
    memory: Tensor


@dataclass(frozen=True, slots=True)
class Neighbor:
    """The sender on a receiver's GPU whose messages the receiver packs and sends.

    `socket` is where it listens.
    """

    rank: int
    socket: Path


@dataclass(frozen=True, slots=True)
class World:
    """How many ranks each side has. Members are numbered: senders first, then receivers."""

    senders: int
    receivers: int

    @property
    def size(self) -> int:
        """Number of members."""
        return self.senders + self.receivers

    def member(self, side: Side, rank: int) -> int:
        """Return the number of a rank among all members.

        Raises:
            ValueError: the side has no such rank.
        """
        count = self.senders if side is Side.SENDER else self.receivers
        if not 0 <= rank < count:
            raise ValueError(f"there is no {side} rank {rank}: the side has {count}")
        return rank if side is Side.SENDER else self.senders + rank

    def seat(self, member: int) -> tuple[Side, int]:
        """Return the side and rank of a member."""
        if member < self.senders:
            return Side.SENDER, member
        return Side.RECEIVER, member - self.senders


class Transport(Protocol):
    """One rank's connection to all ranks of both sides. Every rank makes the same calls in order.

    An implementation raises `TransportError` instead of waiting for a peer for ever.
    """

    @property
    def world(self) -> World:
        """Both sides' sizes."""
        ...

    @property
    def timeout(self) -> float:
        """How long a rank may keep the others waiting, in seconds."""
        ...

    def refusal(self, device: torch.device) -> str | None:
        """Say why memory on `device` cannot be sent or received, or None if it can."""
        ...

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every rank the texts of all, also where some ranks are gone.

        `meanwhile` is called once, as soon as this rank has said what it has to say.
        """
        ...


@runtime_checkable
class MessageTransport(Transport, Protocol):
    """A transport of messages, which are packed before and unpacked after.

    A step consists of rounds, which are numbered from 0 and the same on all ranks.
    """

    def connect(
        self, sends: Sequence[Sequence[Parcel]], receives: Sequence[Sequence[Parcel]]
    ) -> None:
        """Make ready for steps in which these parcels are exchanged, round after round.

        Their memory may be written, but not read yet by anybody: it holds nothing.
        """
        ...

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        """Send and receive all parcels of a round in one group.

        On return the memory of both may be used again: by the host, or, if it is a GPU's, by what
        is enqueued on the current stream from then on. Between two ranks there is one parcel at
        most, of a size that both know; none of them is empty.
        """
        ...

    def release(self, number: int) -> None:
        """Tell that the memory of what was received in a round may be written again.

        If it is a GPU's, that is so once what is enqueued on the current stream is done.
        """
        ...

    def disconnect(self) -> None:
        """Undo `connect`. May be repeated."""
        ...

    def abandon(self) -> None:
        """Stop what is under way. The transport is of no use any more."""
        ...

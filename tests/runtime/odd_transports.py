"""Transports that do something else than they should."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tranship.runtime.transports.protocol import (
    Gathered,
    Meanwhile,
    MessageTransport,
    Parcel,
    World,
    nothing,
)


@dataclass
class Passing:
    """A transport that passes everything on to another one."""

    inner: MessageTransport

    @property
    def world(self) -> World:
        return self.inner.world

    @property
    def timeout(self) -> float:
        return self.inner.timeout

    def refusal(self, device: torch.device) -> str | None:
        return self.inner.refusal(device)

    def connect(
        self, sends: Sequence[Sequence[Parcel]], receives: Sequence[Sequence[Parcel]]
    ) -> None:
        self.inner.connect(sends, receives)

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        self.inner.exchange(number, sends, receives)

    def release(self, number: int) -> None:
        self.inner.release(number)

    def disconnect(self) -> None:
        self.inner.disconnect()

    def abandon(self) -> None:
        self.inner.abandon()

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        return self.inner.gather(payload, meanwhile)


@dataclass
class Flipping(Passing):
    """Changes one bit of what arrives in one round of the second step."""

    at: int
    exchanges: int = 0

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        self.inner.exchange(number, sends, receives)
        self.exchanges += 1
        if self.exchanges == self.at:
            receives[0].memory[5] ^= 4

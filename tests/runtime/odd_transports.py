"""Transports that do something else than they should."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tranship.runtime.transports.protocol import Gathered, Parcel, Transport, World


@dataclass
class Passing:
    """A transport that passes everything on to another one."""

    inner: Transport

    @property
    def world(self) -> World:
        return self.inner.world

    def refusal(self, memory: Tensor) -> str | None:
        return self.inner.refusal(memory)

    def exchange(self, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        self.inner.exchange(sends, receives)

    def gather(self, payload: str) -> Gathered:
        return self.inner.gather(payload)


@dataclass
class Flipping(Passing):
    """Changes one bit of what arrives in one round of the second step."""

    at: int
    exchanges: int = 0

    def exchange(self, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        self.inner.exchange(sends, receives)
        self.exchanges += 1
        if self.exchanges == self.at:
            receives[0].memory[5] ^= 4

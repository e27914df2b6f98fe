"""One program bound to a GPU: what packs a sender's messages there, or unpacks a receiver's."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tranship.runtime.deliveries import by_round, labels
from tranship.runtime.kernels.packed import bind_packed
from tranship.runtime.kernels.rounds import bind_kernels
from tranship.runtime.messages import Delivery
from tranship.runtime.packed import PackedScales
from tranship.runtime.program import Program
from tranship.runtime.replay import Replay, Slots
from tranship.runtime.transports.protocol import Parcel
from tranship.schema.manifest import Side
from tranship.schema.plan import TransferPlan


class Half:
    """A program with its staging memory, its kernels and a stream of their own.

    `parcels` are the messages of each round, with their memory. `computed` is recorded, by round,
    once it is packed or unpacked. `packed` are a receiver's buffers whose scales are to be packed.
    """

    def __init__(
        self,
        plan: TransferPlan,
        own: Program,
        buffers: Sequence[Tensor],
        device: torch.device,
        packed: Sequence[PackedScales] = (),
    ) -> None:
        slots = Slots.of(own, device)
        self.program = own
        self.sends = own.side is Side.SENDER
        self.stream = torch.cuda.Stream(device)
        self.parcels: list[list[Parcel]] = [slots.parcels(item) for item in own.rounds]
        self.computed = [torch.cuda.Event() for _ in own.rounds]
        self._done = torch.cuda.Event()
        self._labels = labels(plan, own)
        self._kernels = bind_kernels(own, buffers, [slots.slot(item) for item in own.rounds])
        self._packed = bind_packed(packed, device)
        count = self._kernels.digests.first[-1]
        self._sums = torch.empty((2, count), dtype=torch.int64, device=device)
        self._totals = torch.empty((2, count), dtype=torch.int64, pin_memory=device.type == "cuda")

    def begin(self, done: Replay, after: torch.cuda.Event) -> None:
        """Enqueue what comes before the first round, once `after` has come."""
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            done.attempt("begin", self._kernels.begin)

    def compute(self, number: int, done: Replay, after: Sequence[torch.cuda.Event]) -> None:
        """Enqueue packing or unpacking a round, once everything `after` has come."""
        for event in after:
            self.stream.wait_event(event)
        with torch.cuda.stream(self.stream):
            done.attempt("pack" if self.sends else "unpack", self._kernels.run, number)
        self.computed[number].record(self.stream)

    def pack_scales(self, done: Replay) -> None:
        """Enqueue writing and comparing packed scales, once all rounds are unpacked."""
        with torch.cuda.stream(self.stream):
            done.attempt("unpack", self._packed.run)

    def end(self, before: torch.cuda.Stream) -> None:
        """Enqueue bringing the digests to the host, which `before` then waits for."""
        with torch.cuda.stream(self.stream):
            self._totals.copy_(self._kernels.digests.totals(self._sums), non_blocking=True)
        self._done.record(self.stream)
        before.wait_event(self._done)

    def differing(self) -> list[str]:
        """Name the packed scales that are not those received, once the host has waited for them."""
        return self._packed.differing()

    def deliveries(self) -> tuple[Delivery, ...]:
        """Return the digests of all messages, once the host has waited for them."""
        first: Sequence[int] = self._kernels.digests.first
        wire, written = (np.split(row, first[1:-1]) for row in self._totals.numpy())
        return by_round(self.program, self._labels, wire, wire if self.sends else written)

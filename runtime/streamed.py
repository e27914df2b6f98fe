"""Rounds on a GPU: packed, exchanged and unpacked on streams that the host does not wait for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tranship.runtime.bind import find_moved
from tranship.runtime.deliveries import by_round, labels
from tranship.runtime.errors import DistributedError
from tranship.runtime.kernels.rounds import bind_kernels
from tranship.runtime.messages import Finding
from tranship.runtime.program import RoundProgram
from tranship.runtime.replay import Endpoint, Replay, Slots, derive
from tranship.runtime.step import conclude_binding
from tranship.runtime.streams import finish, on_device
from tranship.runtime.transports.protocol import MessageTransport, Parcel, TransportError
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Side


class StreamReplayer:
    """Replays all rounds with kernels: while one is exchanged, others are packed or unpacked.

    A round may use its slot when the rounds that it comes `after` are done there. The exchange has
    a stream of high priority: at equal priority it would wait for the kernels that are enqueued
    before it.
    """

    def __init__(self, end: Endpoint, transport: MessageTransport) -> None:
        self._end, self._transport = end, transport
        self._slots = Slots.of(end)
        slots = [self._slots.slot(item) for item in end.program.rounds]
        with on_device(end.bound.device):
            self._kernels = bind_kernels(end.program, end.buffers, slots)
        device = end.bound.device
        self._compute = torch.cuda.Stream(device)
        self._exchange = torch.cuda.Stream(device, priority=-1)
        self._rounds = [
            _Round(item, self._slots.parcels(item), torch.cuda.Event(), torch.cuda.Event())
            for item in end.program.rounds
        ]
        self._labels = labels(end.plan, end.program)
        self._begun, self._finished = torch.cuda.Event(), torch.cuda.Event()
        count = self._kernels.digests.first[-1]
        self._sums = torch.empty((2, count), dtype=torch.int64, device=device)
        self._totals = torch.empty((2, count), dtype=torch.int64, pin_memory=device.type == "cuda")
        try:
            conclude_binding(end, self._meet())
        except DistributedError:
            self.close()
            raise

    def _meet(self) -> list[Finding]:
        """Connect with all peers. Nothing is unpacked, and the slots stay as they are."""
        done = Replay()
        with torch.cuda.stream(self._exchange):
            done.attempt(
                "connect", self._transport.connect, [each.parcels for each in self._rounds]
            )
        self._finished.record(self._exchange)
        self._wait(done)
        return done.findings

    def _wait(self, done: Replay) -> None:
        """Wait for the end of what was enqueued, also where something has failed: peers go on."""
        if not finish(done, self._finished, self._transport.timeout):
            self._transport.abandon()

    def prepare(self) -> tuple[Diagnostic, ...]:
        """Look at whether memory is still what was bound."""
        return find_moved(self._end.bound)

    def begin(self, version: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Disconnect."""
        self._transport.disconnect()

    def run(self, version: int) -> Replay:
        """Run all rounds of a step on this rank."""
        del version
        done, own = Replay(), self._end.program
        with done.timed("enqueue"):
            self._enqueue(done)
        self._wait(done)
        if not done.findings:
            wire, written = self._by_round()
            done.deliveries = by_round(own, self._labels, wire, written)
        return done

    def _enqueue(self, done: Replay) -> None:
        """Enqueue the whole step, with an event at its end."""
        self._begun.record(torch.cuda.current_stream(self._end.bound.device))
        self._compute.wait_event(self._begun)
        receives = self._end.program.side is Side.RECEIVER
        with torch.cuda.stream(self._compute):
            done.attempt("pack", self._kernels.begin)
        for each in self._rounds:
            try:
                if receives:
                    self._receive(each, done)
                else:
                    self._send(each, done)
            except TransportError as error:
                done.findings.append(Finding(code="TS838", message=f"exchange failed: {error}"))
                break
        with torch.cuda.stream(self._compute):
            if receives:
                derive(self._end, done)
            self._totals.copy_(self._kernels.digests.totals(self._sums), non_blocking=True)
        self._finished.record(self._compute)

    def _send(self, each: "_Round", done: Replay) -> None:
        for number in each.item.after:
            self._compute.wait_event(self._rounds[number].exchanged)
        with torch.cuda.stream(self._compute):
            done.attempt("pack", self._kernels.run, each.item.number)
        each.computed.record(self._compute)
        self._exchange.wait_event(each.computed)
        with torch.cuda.stream(self._exchange):
            self._transport.exchange(each.item.number, each.parcels, ())
        each.exchanged.record(self._exchange)
        if each is self._rounds[-1]:
            self._compute.wait_event(each.exchanged)

    def _receive(self, each: "_Round", done: Replay) -> None:
        self._exchange.wait_event(self._begun)
        for number in each.item.after:
            self._exchange.wait_event(self._rounds[number].computed)
        with torch.cuda.stream(self._exchange):
            self._transport.exchange(each.item.number, (), each.parcels)
        each.exchanged.record(self._exchange)
        self._compute.wait_event(each.exchanged)
        with torch.cuda.stream(self._compute):
            done.attempt("unpack", self._kernels.run, each.item.number)
            self._transport.release(each.item.number)
        each.computed.record(self._compute)

    def _by_round(self) -> tuple[list[IntArray], list[IntArray]]:
        totals: Tensor = self._totals
        first: Sequence[int] = self._kernels.digests.first
        wire, written = (np.split(row, first[1:-1]) for row in totals.numpy())
        sends = self._end.program.side is Side.SENDER
        return wire, wire if sends else written


@dataclass(frozen=True, slots=True)
class _Round:
    """A round with its messages, and events of when they were exchanged, and packed or unpacked."""

    item: RoundProgram
    parcels: list[Parcel]
    exchanged: torch.cuda.Event
    computed: torch.cuda.Event

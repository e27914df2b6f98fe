"""Rounds on a GPU: packed, exchanged and unpacked on streams that the host does not wait for."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tranship.runtime.bind import find_moved
from tranship.runtime.deliveries import by_round
from tranship.runtime.kernels.packed import bind_packed
from tranship.runtime.kernels.rounds import bind_kernels
from tranship.runtime.messages import Finding
from tranship.runtime.program import RoundProgram
from tranship.runtime.replay import Endpoint, Replay, Slots, derive, misrepeated
from tranship.runtime.step import conclude_binding
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
            self._packed = bind_packed(end.packed, end.bound.device)
        device = end.bound.device
        self._compute = torch.cuda.Stream(device)
        self._exchange = torch.cuda.Stream(device, priority=-1)
        self._rounds = [
            _Round(item, self._slots.parcels(item), torch.cuda.Event(), torch.cuda.Event())
            for item in end.program.rounds
        ]
        self._begun, self._finished = torch.cuda.Event(), torch.cuda.Event()
        count = self._kernels.digests.first[-1]
        self._sums = torch.empty((2, count), dtype=torch.int64, device=device)
        self._totals = torch.empty((2, count), dtype=torch.int64, pin_memory=device.type == "cuda")
        conclude_binding(end, self._meet())

    def _meet(self) -> list[Finding]:
        """Exchange all messages once, empty as they are: connections are made at their first use.

        Nothing is unpacked, and the slots stay as they are.
        """
        sends = self._end.program.side is Side.SENDER
        done = Replay()
        with torch.cuda.stream(self._exchange):
            for each in self._rounds:
                out, back = (each.parcels, ()) if sends else ((), each.parcels)
                done.attempt("connect", self._transport.exchange, out, back)
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
        """Do nothing."""

    def run(self, version: int) -> Replay:
        """Run all rounds of a step on this rank."""
        del version
        done, own = Replay(), self._end.program
        with done.timed("enqueue"):
            self._enqueue(done)
        self._wait(done)
        if not done.findings:
            done.findings += misrepeated(self._packed.differing())
            wire, written = self._by_round()
            done.deliveries = by_round(self._end.plan, own, wire, written)
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
                done.attempt("unpack", self._packed.run)
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
            self._transport.exchange(each.parcels, ())
        each.exchanged.record(self._exchange)
        if each is self._rounds[-1]:
            self._compute.wait_event(each.exchanged)

    def _receive(self, each: "_Round", done: Replay) -> None:
        self._exchange.wait_event(self._begun)
        for number in each.item.after:
            self._exchange.wait_event(self._rounds[number].computed)
        with torch.cuda.stream(self._exchange):
            self._transport.exchange((), each.parcels)
        each.exchanged.record(self._exchange)
        self._compute.wait_event(each.exchanged)
        with torch.cuda.stream(self._compute):
            done.attempt("unpack", self._kernels.run, each.item.number)
        each.computed.record(self._compute)

    def _by_round(self) -> tuple[list[IntArray], list[IntArray]]:
        totals: Tensor = self._totals
        first: Sequence[int] = self._kernels.digests.first
        wire, written = (np.split(row, first[1:-1]) for row in totals.numpy())
        sends = self._end.program.side is Side.SENDER
        return wire, wire if sends else written


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one: kernels are loaded and launched there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass(frozen=True, slots=True)
class _Round:
    """A round with its messages, and events of when they were exchanged, and packed or unpacked."""

    item: RoundProgram
    parcels: list[Parcel]
    exchanged: torch.cuda.Event
    computed: torch.cuda.Event


def finish(done: Replay, event: torch.cuda.Event, timeout: float) -> bool:
    """Wait for `event`, and return whether it came; that it did not is a finding."""
    try:
        with done.timed("wait"):
            wait_for(event, timeout)
    except (RuntimeError, TimeoutError) as error:
        done.findings.append(Finding(code="TS838", message=f"wait failed: {error}"))
        return False
    return True


def wait_for(event: torch.cuda.Event, timeout: float) -> None:
    """Wait until the GPU has come to `event`.

    It looks at the event all the time: a pause between two looks is as long as a timer's tick,
    which on virtual machines may be milliseconds.

    Raises:
        TimeoutError: it has not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not event.query():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the GPU was not done within {timeout:g} s")

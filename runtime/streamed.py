"""Rounds on a GPU: packed, exchanged and unpacked on streams that the host does not wait for."""

import torch

from tranship.runtime.bind import find_moved, find_replaced
from tranship.runtime.halves import Half
from tranship.runtime.lending import Loan, borrow
from tranship.runtime.messages import Finding, told
from tranship.runtime.program import program
from tranship.runtime.replay import Endpoint, Replay, Replayer, derive, misrepeated
from tranship.runtime.step import conclude_binding
from tranship.runtime.streams import finish, on_device, over
from tranship.runtime.transports.protocol import MessageTransport, Neighbor, Parcel, TransportError
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.manifest import Side


class StreamReplayer(Replayer):
    """Replays all rounds with kernels: while one is exchanged, others are packed or unpacked.

    A round may use its slot when the rounds that it comes `after` are done there. The exchange has
    a stream of high priority: at equal priority it would wait for the kernels that are enqueued
    before it. A receiver with a `neighbor` packs and sends that sender's messages, too.
    """

    def __init__(
        self, end: Endpoint, transport: MessageTransport, neighbor: Neighbor | None = None
    ) -> None:
        self._end, self._transport, self._neighbor = end, transport, neighbor
        self._device = end.bound.device
        self._exchange = torch.cuda.Stream(self._device, priority=-1)
        self._begun, self._finished = torch.cuda.Event(), torch.cuda.Event()
        self._exchanged = [torch.cuda.Event() for _ in end.program.rounds]
        self._loan: Loan | None = None
        self._halves: list[Half] = []
        self._sends = end.program.side is Side.SENDER
        self._given_up, self._ready, self._pending, self._ahead = False, False, False, 0
        self._done = done = Replay()
        try:
            with on_device(self._device):
                done.attempt("binding", self._bind)
                # Whoever is not there would be waited for while connecting.
                conclude_binding(end, done.findings)
                self._connect(done)
            conclude_binding(end, done.findings)
        except BaseException:
            self.close()
            raise

    def _bind(self) -> None:
        end, neighbor = self._end, self._neighbor
        own = program(end.plan, Side.SENDER, neighbor.rank) if neighbor is not None else None
        # The neighbor waits to be asked, also if nothing else can be bound.
        if neighbor is not None and own is not None and own.buffers:
            self._loan = borrow(neighbor.socket, self._device, self._transport.timeout)
        self._halves.append(Half(end.plan, end.program, end.buffers, self._device, end.packed))
        if own is not None and self._loan is not None:
            sources = self._loan.views(own.buffers)
            self._halves.append(Half(end.plan, own, sources, self._device))

    def _connect(self, done: Replay) -> None:
        """Connect with all peers. Nothing is unpacked, and the slots stay as they are."""
        numbers = range(len(self._exchanged))
        sends = [self._parcels(number, sends=True) for number in numbers]
        receives = [self._parcels(number, sends=False) for number in numbers]
        with torch.cuda.stream(self._exchange):
            done.attempt("connect", self._transport.connect, sends, receives)
        self._finished.record(self._exchange)
        self._wait(done)

    def _wait(self, done: Replay) -> None:
        """Wait for the end of what was enqueued, also where something has failed: peers go on."""
        if not finish(done, self._finished, self._transport.timeout):
            self._give_up()

    def _give_up(self) -> None:
        self._given_up = True
        self._transport.abandon()

    def prepare(self, version: int) -> tuple[Diagnostic, ...]:
        """Look at whether memory is still what was bound, and whether a step can be run.

        Receivers are here before the senders, which everybody waits for: they look at the rest of
        what tells their memory while it is packed.
        """
        del version
        self._ready = False
        find = find_replaced if self._sends else find_moved
        given_up = over(self._end, "an earlier step was given up") if self._given_up else ()
        found = (*given_up, *find(self._end.bound))
        self._ready = not found
        return found

    def begin(self) -> None:
        """Begin to pack the rounds that none must come before."""
        self._done = Replay()
        self._ahead = 0
        self._pending = self._ready
        if self._ready:
            with on_device(self._device), self._done.timed("ahead"):
                self._done.attempt("begin", self._begin, self._done)

    def close(self) -> None:
        """Disconnect, and unmap the neighbor's memory."""
        if self._pending:
            # Rounds were packed ahead, for a step that did not come about.
            for half in self._halves:
                half.stream.synchronize()
            self._pending = False
        self._transport.disconnect()
        self._halves.clear()
        if self._loan is not None:
            self._loan.close()
            self._loan = None

    def run(self, version: int) -> Replay:
        """Run all rounds of a step on this rank."""
        del version
        done, self._pending = self._done, False
        with on_device(self._device), done.timed("enqueue"):
            self._enqueue(done)
        if self._sends:
            with done.timed("check"):
                done.findings += map(told, find_moved(self._end.bound))
        self._wait(done)
        if not done.findings:
            for half in self._halves:
                done.findings += misrepeated(half.differing())
                if half.program is self._end.program:
                    done.deliveries = half.deliveries()
                else:
                    done.packed, done.packed_for = half.deliveries(), half.program.rank
        return done

    def _begin(self, done: Replay) -> None:
        self._begun.record(torch.cuda.current_stream(self._device))
        self._exchange.wait_event(self._begun)
        if self._sends:
            (own,) = self._halves
            own.begin(done, self._begun)
            while self._ahead < len(self._exchanged) and not self._earlier(self._ahead):
                own.compute(self._ahead, done, ())
                self._ahead += 1

    def _earlier(self, number: int) -> tuple[int, ...]:
        return self._end.program.rounds[number].after

    def _enqueue(self, done: Replay) -> None:
        """Enqueue the rest of the step, with an event at its end."""
        for half in self._halves:
            if not self._sends:
                half.begin(done, self._begun)
            if half.sends and self._loan is not None:
                done.attempt("begin", self._loan.hold, half.stream)
        for number in range(len(self._exchanged)):
            try:
                self._round(number, done)
            except TransportError as error:
                done.findings.append(Finding(code="TS838", message=f"exchange failed: {error}"))
                self._give_up()
                break
        for half in self._halves:
            if not half.sends:
                half.pack_scales(done)
                with torch.cuda.stream(half.stream):
                    derive(self._end, done)
            half.end(self._exchange)
        self._finished.record(self._exchange)

    def _parcels(self, number: int, *, sends: bool) -> list[Parcel]:
        halves = [half for half in self._halves if half.sends is sends]
        return [parcel for half in halves for parcel in half.parcels[number]]

    def _round(self, number: int, done: Replay) -> None:
        sending = [half for half in self._halves if half.sends]
        receiving = [half for half in self._halves if not half.sends]
        earlier = self._earlier(number)
        for half in sending:
            if number >= self._ahead:
                half.compute(number, done, [self._exchanged[n] for n in earlier])
            self._exchange.wait_event(half.computed[number])
        for half in receiving:
            for n in earlier:
                self._exchange.wait_event(half.computed[n])
        with torch.cuda.stream(self._exchange):
            sends, receives = (self._parcels(number, sends=sends) for sends in (True, False))
            self._transport.exchange(number, sends, receives)
        self._exchanged[number].record(self._exchange)
        for half in receiving:
            half.compute(number, done, [self._exchanged[number]])
            with torch.cuda.stream(half.stream):
                self._transport.release(number)

"""The rounds of one step on one rank, in order, and digests of all that passed."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from tranship.runtime.bind import Bound, find_moved
from tranship.runtime.deliveries import by_round, labels
from tranship.runtime.digest import transformed_digests, wire_digests, written_digests
from tranship.runtime.execute import Recipe, pack, run_fills, unpack
from tranship.runtime.messages import Delivery, Finding, Hello, failed
from tranship.runtime.packed import PackedScales, is_packed, pack_scales
from tranship.runtime.program import DerivedCall, Program, RoundProgram
from tranship.runtime.transports.protocol import (
    MessageTransport,
    Parcel,
    Transport,
    TransportError,
)
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Side
from tranship.schema.plan import TransferPlan

T = TypeVar("T")
P = ParamSpec("P")


class RecipeError(RuntimeError):
    """A recipe for a derived buffer failed."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a rank replays with: its part of the plan, its memory, its connection.

    `buffers` are the tensors that `program.buffers` names, in that order; `packed` are those of
    them that hold scales to be packed. `hello` is what it tells before every step, but for what is
    new.
    """

    plan: TransferPlan
    hello: Hello
    program: Program
    bound: Bound
    buffers: Sequence[Tensor]
    packed: Sequence[PackedScales]
    recipes: Mapping[str, Recipe]
    transport: Transport


@dataclass(frozen=True, slots=True)
class Slots:
    """The staging memory of a rank, uint8 `[program.staging_bytes]`, by rounds."""

    staging: Tensor

    @classmethod
    def of(cls, own: Program, device: torch.device) -> "Slots":
        """Set the memory aside that a program needs."""
        # What lies between the parts of a message is sent, too: it is zero and stays so.
        return cls(torch.zeros(own.staging_bytes, dtype=torch.uint8, device=device))

    def slot(self, item: RoundProgram) -> Tensor:
        """Return the memory of a round."""
        return self.staging[item.slot_offset : item.slot_offset + item.slot_size]

    def parcels(self, item: RoundProgram) -> list[Parcel]:
        """Return the messages of a round with their memory."""
        slot = self.slot(item)
        return [Parcel(m.peer, slot[m.offset : m.offset + m.size]) for m in item.messages]


class Replayer(Protocol):
    """How one rank does its part of a step; bound once, before the first.

    What comes before the ranks have agreed must be of no harm if they do not: nothing of the model
    is written. `begin` and `run` do not raise: whatever goes wrong is in the result of `run`.
    Classes that are derived from this one need no `begin` and no `close` if they do nothing there.
    """

    def prepare(self, version: int) -> tuple[Diagnostic, ...]:
        """Say what keeps this rank from a step; the others wait for that."""
        ...

    def begin(self) -> None:
        """Do what can be done while the ranks agree."""

    def run(self, version: int) -> "Replay":
        """Send or receive `version`."""
        ...

    def close(self) -> None:
        """Give back what was taken at binding."""


@dataclass(slots=True)
class Replay:
    """What one step did on one rank, so far.

    `deliveries` are digests of what passed, `packed` those of what this rank packed for a sender on
    its GPU, `seconds` what each stage took on the host. After the
    first failure nothing more is computed, but rounds go on: a rank that left would keep all
    others waiting.
    """

    findings: list[Finding] = field(default_factory=list[Finding])
    deliveries: tuple[Delivery, ...] = ()
    packed: tuple[Delivery, ...] = ()
    packed_for: int | None = None
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def attempt(
        self, stage: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Call `call` unless something has failed; keep what it raises as findings, or as TS838."""
        if self.findings:
            return None
        try:
            with self.timed(stage), torch.no_grad():
                return call(*args, **kwargs)
        except Exception as error:
            self.findings += failed(stage, error)
            return None

    @contextmanager
    def timed(self, stage: str) -> Generator[None]:
        """Add the time that a block takes to that of its stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class RoundReplayer(Replayer):
    """Replays round after round with plain torch, over a transport that the host waits for."""

    def __init__(self, end: Endpoint, transport: MessageTransport) -> None:
        self._end, self._transport = end, transport
        self._slots = Slots.of(end.program, end.bound.device)
        self._labels = labels(end.plan, end.program)
        parcels = [self._slots.parcels(item) for item in end.program.rounds]
        sends = end.program.side is Side.SENDER
        nothing = [list[Parcel]() for _ in parcels]
        transport.connect(parcels if sends else nothing, nothing if sends else parcels)

    def prepare(self, version: int) -> tuple[Diagnostic, ...]:
        """Look at whether memory is still what was bound."""
        del version
        return find_moved(self._end.bound)

    def close(self) -> None:
        """Disconnect."""
        self._transport.disconnect()

    def run(self, version: int) -> Replay:
        """Run all rounds of a step on this rank."""
        del version
        done, own = Replay(), self._end.program
        receives = own.side is Side.RECEIVER
        wire: list[IntArray] = []
        written: list[IntArray] = []
        if receives:
            done.attempt("unpack", run_fills, own, self._end.buffers)
        for item in own.rounds:
            try:
                if receives:
                    self._receive(item, done, wire, written)
                else:
                    self._send(item, done, wire)
            except TransportError as error:
                done.findings.append(Finding(code="TS838", message=f"exchange failed: {error}"))
                break
        if receives:
            done.attempt("unpack", self._pack_scales)
            done.attempt("digest", self._read_back, written)
            done.findings += misrepeated(done.attempt("digest", self._differing) or ())
            derive(self._end, done)
        done.deliveries = by_round(own, self._labels, wire, written if receives else wire)
        return done

    def _send(self, item: RoundProgram, done: Replay, wire: list[IntArray]) -> None:
        slot = self._slots.slot(item)
        done.attempt("pack", pack, item, self._end.buffers, slot)
        digests = done.attempt("digest", wire_digests, item, slot)
        with done.timed("exchange"):
            self._transport.exchange(item.number, self._slots.parcels(item), [])
        if digests is not None:
            wire.append(digests)

    def _receive(
        self, item: RoundProgram, done: Replay, wire: list[IntArray], written: list[IntArray]
    ) -> None:
        slot = self._slots.slot(item)
        with done.timed("exchange"):
            self._transport.exchange(item.number, [], self._slots.parcels(item))
        digests = done.attempt("digest", wire_digests, item, slot)
        done.attempt("unpack", unpack, item, self._end.buffers, slot)
        # What is not copied as it came leaves nothing to compare in the buffers, only in the slot.
        transformed = done.attempt("digest", transformed_digests, item, slot)
        self._transport.release(item.number)
        if digests is not None and transformed is not None:
            wire.append(digests)
            written.append(transformed)

    def _pack_scales(self) -> None:
        for packed in self._end.packed:
            pack_scales(packed)

    def _differing(self) -> list[str]:
        return [packed.name for packed in self._end.packed if not is_packed(packed)]

    def _read_back(self, written: list[IntArray]) -> None:
        """Complete the digests of what is written, once nothing more is to be written."""
        for item, digests in zip(self._end.program.rounds, written, strict=True):
            digests += written_digests(item, self._end.buffers)


def misrepeated(names: Sequence[str]) -> list[Finding]:
    """Report buffers whose packed scales are not those that were received (TS841)."""
    return [
        Finding(code="TS841", message=f"{name!r} does not hold the scales that were received")
        for name in names
    ]


def derive(end: Endpoint, done: Replay) -> None:
    """Recompute what the plan derives."""
    for call in end.program.derived:
        done.attempt("derive", _derive, end, call)


def _derive(end: Endpoint, call: DerivedCall) -> None:
    tensors = [end.bound.tensors[name] for name in (call.buffer, *call.inputs)]
    try:
        end.recipes[call.recipe](*tensors)
    except Exception as error:
        reason = f"recipe {call.recipe!r} for {call.buffer!r}: {type(error).__name__}: {error}"
        raise RecipeError(reason) from error

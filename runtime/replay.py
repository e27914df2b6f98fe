"""The rounds of one step on one rank, in order, and digests of all that passed."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from tranship.runtime.bind import Bound
from tranship.runtime.digest import transformed_digests, wire_digests, written_digests
from tranship.runtime.execute import Recipe, pack, run_fills, unpack
from tranship.runtime.messages import Finding
from tranship.runtime.program import DerivedCall, Program, RoundProgram
from tranship.runtime.transports.protocol import Parcel, Transport, TransportError
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

    `buffers` are the tensors that `program.buffers` names, in that order; `staging` is uint8
    `[program.staging_bytes]`. `plan_digest` is the plan's.
    """

    plan: TransferPlan
    plan_digest: str
    program: Program
    bound: Bound
    buffers: Sequence[Tensor]
    staging: Tensor
    recipes: Mapping[str, Recipe]
    transport: Transport

    def slot(self, item: RoundProgram) -> Tensor:
        """Return the staging memory of a round."""
        return self.staging[item.slot_offset : item.slot_offset + item.slot_size]

    def parcels(self, item: RoundProgram) -> list[Parcel]:
        """Return the messages of a round with their memory."""
        slot = self.slot(item)
        return [Parcel(m.peer, slot[m.offset : m.offset + m.size]) for m in item.messages]


@dataclass(slots=True)
class Replay:
    """What one step did on one rank, so far.

    `wire` and `written` have for every round that was exchanged the digest of each message, int64
    `[messages]`; `seconds` what each stage took on the host. After the first failure nothing more
    is computed, but rounds go on: a rank that left would keep all others waiting.
    """

    findings: list[Finding] = field(default_factory=list[Finding])
    wire: list[IntArray] = field(default_factory=list[IntArray])
    written: list[IntArray] = field(default_factory=list[IntArray])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def attempt(
        self, stage: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T | None:
        """Call `call` unless something has failed; keep what it raises as a finding (TS838)."""
        if self.findings:
            return None
        try:
            with self.timed(stage), torch.no_grad():
                return call(*args, **kwargs)
        except Exception as error:
            reason = f"{stage} failed: {type(error).__name__}: {error}"
            self.findings.append(Finding(code="TS838", message=reason))
            return None

    @contextmanager
    def timed(self, stage: str) -> Generator[None]:
        """Add the time that a block takes to that of its stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def replay(end: Endpoint) -> Replay:
    """Run all rounds of a step on this rank. What goes wrong is in the result, not raised."""
    done = Replay()
    receives = end.program.side is Side.RECEIVER
    play = _receive if receives else _send
    if receives:
        done.attempt("unpack", run_fills, end.program, end.buffers)
    for item in end.program.rounds:
        try:
            play(end, item, done)
        except TransportError as error:
            done.findings.append(Finding(code="TS838", message=f"exchange failed: {error}"))
            break
    if receives:
        done.attempt("digest", _read_back, end, done)
        for call in end.program.derived:
            done.attempt("derive", _derive, end, call)
    return done


def _send(end: Endpoint, item: RoundProgram, done: Replay) -> None:
    slot = end.slot(item)
    done.attempt("pack", pack, item, end.buffers, slot)
    digests = done.attempt("digest", wire_digests, item, slot)
    with done.timed("exchange"):
        end.transport.exchange(end.parcels(item), [])
    if digests is not None:
        done.wire.append(digests)


def _receive(end: Endpoint, item: RoundProgram, done: Replay) -> None:
    slot = end.slot(item)
    with done.timed("exchange"):
        end.transport.exchange([], end.parcels(item))
    digests = done.attempt("digest", wire_digests, item, slot)
    done.attempt("unpack", unpack, item, end.buffers, slot)
    # What is not copied as it came leaves nothing to compare in the buffers, only in the slot.
    transformed = done.attempt("digest", transformed_digests, item, slot)
    if digests is not None and transformed is not None:
        done.wire.append(digests)
        done.written.append(transformed)


def _read_back(end: Endpoint, done: Replay) -> None:
    """Complete the digests of what is written, once nothing more is to be written."""
    for item, digests in zip(end.program.rounds, done.written, strict=True):
        digests += written_digests(item, end.buffers)


def _derive(end: Endpoint, call: DerivedCall) -> None:
    tensors = [end.bound.tensors[name] for name in (call.buffer, *call.inputs)]
    try:
        end.recipes[call.recipe](*tensors)
    except Exception as error:
        reason = f"recipe {call.recipe!r} for {call.buffer!r}: {type(error).__name__}: {error}"
        raise RecipeError(reason) from error

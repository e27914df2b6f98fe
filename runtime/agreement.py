"""Before and after a step: whether all ranks mean the same, and whether all bytes arrived."""

from collections.abc import Iterator, Mapping
from operator import itemgetter

from tranship.runtime.bind import location
from tranship.runtime.messages import ALL_ROUNDS, Delivery, Hello, Outcome, Seat
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.manifest import Side

_MUST_AGREE = (
    ("TS830", "plan", "replays plan"),
    ("TS831", "sender_manifest", "has a plan of the sender manifest"),
    ("TS831", "receiver_manifest", "has a plan of the receiver manifest"),
    ("TS832", "version", "is at version"),
)


def disagreements(hellos: Mapping[Seat, Hello]) -> Iterator[Diagnostic]:
    """Yield what keeps the ranks from beginning a step: TS830 to TS834.

    Ranks are compared with the first one; who is right, the messages leave open.
    """
    first = next(iter(hellos), None)
    for seat, hello in hellos.items():
        assert first is not None
        for code, field, verb in _MUST_AGREE:
            mine, other = getattr(hello, field), getattr(hellos[first], field)
            if mine != other:
                name = f"{seat[0]} rank {seat[1]}"
                message = f"{name} {verb} {mine}, {first[0]} rank {first[1]} {other}"
                yield Diagnostic(code, message, location(*seat))
        if (hello.side, hello.rank) != seat:
            message = (
                f"{seat[0]} rank {seat[1]} of the transport replays the program of"
                f" {hello.side} rank {hello.rank}"
            )
            yield Diagnostic("TS834", message, location(*seat))
        if hello.committed is not None and hello.version <= hello.committed:
            message = f"version {hello.version} does not follow version {hello.committed}"
            advice = "count versions up, also over restarts of one side"
            yield Diagnostic("TS833", message, location(*seat), help=advice)


_SHOWN = 4
"""Most tensors of a message that are named."""

Pair = tuple[int, int, int]
"""A round, a sender rank, a receiver rank."""


def differences(outcomes: Mapping[Seat, Outcome]) -> Iterator[Diagnostic]:
    """Yield the messages that a receiver did not get (TS839) or write (TS840) as they were sent."""
    sent = dict(sorted(_deliveries(outcomes, Side.SENDER), key=itemgetter(0)))
    received = dict(_deliveries(outcomes, Side.RECEIVER))
    for pair, there in sent.items():
        here = received.get(pair)
        where = location(Side.RECEIVER, pair[2])
        if here is None or here.wire != there.wire:
            yield Diagnostic("TS839", f"{_name(pair, there)} changed on its way", where)
        elif here.written != there.wire:
            message = f"{_name(pair, there)} arrived, but the buffers do not hold it"
            yield Diagnostic("TS840", message, where)
    for pair in received.keys() - sent.keys():
        message = f"receiver rank {pair[2]} got what sender rank {pair[1]} does not tell of"
        yield Diagnostic("TS839", message, location(Side.RECEIVER, pair[2]))


def _deliveries(outcomes: Mapping[Seat, Outcome], side: Side) -> Iterator[tuple[Pair, Delivery]]:
    for (own_side, rank), outcome in _speaking(outcomes):
        if own_side is side:
            for item in outcome:
                ends = (rank, item.peer) if side is Side.SENDER else (item.peer, rank)
                yield (item.round, *ends), item


def _speaking(
    outcomes: Mapping[Seat, Outcome],
) -> Iterator[tuple[Seat, tuple[Delivery, ...]]]:
    """Yield what each rank tells, and what is told for those that others packed for."""
    for seat, outcome in outcomes.items():
        yield seat, outcome.deliveries
        if outcome.packed_for is not None:
            yield (Side.SENDER, outcome.packed_for), outcome.packed


def _name(pair: Pair, delivery: Delivery) -> str:
    when = "what" if pair[0] == ALL_ROUNDS else f"in round {pair[0]}, what"
    more = len(delivery.tensors) - _SHOWN
    names = ", ".join(delivery.tensors[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    what = f" of {names}" if names else ""
    return f"{when} sender rank {pair[1]} sent receiver rank {pair[2]}{what}"

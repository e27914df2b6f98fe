"""The parts of a step in which ranks talk: they agree before it, and conclude after it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tranship.runtime.agreement import differences, disagreements
from tranship.runtime.bind import location
from tranship.runtime.deliveries import by_peer, total_digest
from tranship.runtime.errors import DistributedError
from tranship.runtime.messages import (
    Delivery,
    Finding,
    M,
    Outcome,
    Seat,
    read_all,
    reported,
    told,
)
from tranship.runtime.replay import Endpoint, Replay
from tranship.runtime.transports.protocol import Meanwhile, TransportError, World, nothing
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.manifest import Side


@dataclass(frozen=True, slots=True)
class StepStats:
    """What a step that was committed did on one rank.

    Attributes:
        version: the version that every rank now has.
        rounds: how many rounds were replayed.
        bytes_sent: bytes of the messages that this rank sent, padding included.
        bytes_received: the same of those that came.
        seconds: host time by stage: pack, exchange, unpack, digest, derive; on a GPU enqueue, check
            and wait as well, since what is enqueued takes its time later.
        digest: of everything that all receivers have of what was sent; equal on all ranks, and
            for equal weights where senders and receivers are the same. Constants, and what is
            derived, are not part of it.
    """

    version: int
    rounds: int
    bytes_sent: int
    bytes_received: int
    seconds: Mapping[str, float]
    digest: str


def agree(
    end: Endpoint,
    version: int,
    committed: int | None,
    findings: Sequence[Diagnostic],
    meanwhile: Meanwhile = nothing,
) -> None:
    """Make sure that all ranks are about to do the same. Nothing has been sent or written yet.

    Args:
        end: This rank.
        version: What it is about to send or receive.
        committed: The last version that it has.
        findings: What keeps it from that.
        meanwhile: What to do while others are waited for.

    Raises:
        DistributedError: TS810, a rank's memory is not what was bound; TS830 to TS837.
    """
    news = {"version": version, "committed": committed, "findings": tuple(map(told, findings))}
    hello = end.hello.model_copy(update=news)
    hellos, found = gather(end, hello, meanwhile)
    found += reported({seat: said.findings for seat, said in hellos.items()})
    found += disagreements(hellos)
    if found:
        raise DistributedError(found)


def conclude_binding(end: Endpoint, findings: Sequence[Finding]) -> None:
    """Tell all ranks how binding went here; where it involves others, all have to know.

    Raises:
        DistributedError: it failed on some rank.
    """
    outcomes, lost = gather(end, Outcome(deliveries=(), findings=tuple(findings)))
    lost += reported({seat: said.findings for seat, said in outcomes.items()})
    if lost:
        raise DistributedError(lost)


def conclude(end: Endpoint, done: Replay, version: int) -> StepStats:
    """Make sure that every rank did its part, and that every byte is where it belongs.

    Raises:
        DistributedError: TS836 to TS840; receivers hold a mixture of versions.
    """
    outcomes, findings = gather(end, _outcome(done, by_peer))
    findings += reported({seat: said.findings for seat, said in outcomes.items()})
    differing = [] if findings else list(differences(outcomes))
    if differing:
        # Every rank has come to this from the same messages, so that all of them tell the rest.
        details, findings = gather(end, _outcome(done, tuple[Delivery, ...]))
        findings += list(differences(details)) or differing
    if findings:
        raise DistributedError(findings)
    return _stats(end, done, version, outcomes)


def rehearse(end: Endpoint, done: Replay) -> None:
    """Do what `conclude` does but for talking, as if two ranks had said the same, and forget it.

    On a host that does so while its GPU works, the end of a step takes half as long: what has not
    run for milliseconds is no longer in the processor's caches.
    """
    pair = World(1, 1)
    text = _outcome(done, by_peer).model_dump_json()
    outcomes, _ = read_all(Outcome, (text,) * pair.size, pair)
    tuple(reported({seat: said.findings for seat, said in outcomes.items()}))
    tuple(differences(outcomes))
    _stats(end, done, 0, outcomes)


def _outcome(
    done: Replay, told_as: Callable[[tuple[Delivery, ...]], tuple[Delivery, ...]]
) -> Outcome:
    return Outcome(
        deliveries=told_as(done.deliveries),
        findings=tuple(done.findings),
        packed=told_as(done.packed),
        packed_for=done.packed_for,
    )


def gather(
    end: Endpoint, message: M, meanwhile: Meanwhile = nothing
) -> tuple[dict[Seat, M], list[Diagnostic]]:
    """Tell all ranks `message`, and return what each of them said, and who could not be heard.

    Raises:
        DistributedError: TS836, nobody can be heard any more.
    """
    try:
        texts = end.transport.gather(message.model_dump_json(), meanwhile)
    except TransportError as error:
        here = location(end.program.side, end.program.rank)
        raise DistributedError([Diagnostic("TS836", f"{error}", here)]) from error
    return read_all(type(message), texts, end.transport.world)


def _stats(
    end: Endpoint, done: Replay, version: int, outcomes: Mapping[Seat, Outcome]
) -> StepStats:
    sizes = sum(message.size for item in end.program.rounds for message in item.messages)
    sends = end.program.side is Side.SENDER
    held: list[Delivery] = []
    for (side, _), outcome in outcomes.items():
        held += outcome.deliveries if side is Side.RECEIVER else ()
    return StepStats(
        version=version,
        rounds=len(end.program.rounds),
        bytes_sent=sizes if sends else 0,
        bytes_received=0 if sends else sizes,
        seconds=dict(done.seconds),
        digest=total_digest(held),
    )

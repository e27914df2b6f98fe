"""What a rank tells of the messages of a step: their digests, and the tensors that they carry."""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from tranship.runtime.jobs import SLOT
from tranship.runtime.messages import ALL_ROUNDS, Delivery
from tranship.runtime.program import RoundProgram
from tranship.runtime.replay import Endpoint, Replay
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Side


def by_round(end: Endpoint, done: Replay) -> tuple[Delivery, ...]:
    """Return every message of a step that was replayed without failure."""
    return tuple(found for number in range(len(done.wire)) for found in _round(end, done, number))


def by_peer(deliveries: Iterable[Delivery]) -> tuple[Delivery, ...]:
    """Put what passed between the same two ranks in all rounds together."""
    peers: dict[int, list[Delivery]] = {}
    for item in deliveries:
        peers.setdefault(item.peer, []).append(item)
    return tuple(
        Delivery(
            round=ALL_ROUNDS,
            peer=peer,
            wire=_together(item.wire for item in items),
            written=_together(item.written or "" for item in items),
        )
        for peer, items in sorted(peers.items())
    )


def total_digest(deliveries: Iterable[Delivery]) -> str:
    """Return one digest of all that all ranks sent."""
    return f"sha256:{_together(item.wire for item in deliveries)}"


def _together(digests: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _round(end: Endpoint, done: Replay, number: int) -> Iterator[Delivery]:
    item = end.program.rounds[number]
    sends = end.program.side is Side.SENDER
    wire, written = done.wire[number], done.wire[number] if sends else done.written[number]
    edges = _edges(item) if sends else [()] * len(item.messages)
    for position, message in enumerate(item.messages):
        names = {end.plan.edges[edge].tensor for edge in edges[position]}
        yield Delivery(
            round=number,
            peer=message.peer,
            wire=_hex(wire, position),
            written=_hex(written, position),
            tensors=tuple(sorted(names)),
        )


def _hex(digests: IntArray, position: int) -> str:
    return f"{int(digests[position]) % 2**64:016x}"


def _edges(item: RoundProgram) -> list[tuple[int, ...]]:
    """Return the numbers of the edges that have a part of each message of a sender."""
    jobs = item.jobs
    offsets = np.where(jobs["target"] == SLOT, jobs["target_offset"], jobs["scale_offset"])
    starts = [message.offset for message in item.messages]
    message = np.searchsorted(starts, offsets, side="right") - 1
    return [
        tuple(np.unique(jobs["edge"][message == position]).tolist())
        for position in range(len(starts))
    ]

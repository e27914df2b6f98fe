"""What a rank tells of the messages of a step: their digests, and the tensors that they carry."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tranship.runtime.jobs import SLOT
from tranship.runtime.messages import ALL_ROUNDS, Delivery
from tranship.runtime.program import Program, RoundProgram
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Side
from tranship.schema.plan import TransferPlan

Labels = Sequence[Sequence[tuple[str, ...]]]
"""The tensors, or families, that each message of each round has a part of; receivers tell none."""


def labels(plan: TransferPlan, own: Program) -> Labels:
    """Return what a rank tells of its messages in every step; it takes milliseconds."""
    return [list(_labels(plan, own.side, item)) for item in own.rounds]


def by_round(
    own: Program, names: Labels, wire: Sequence[IntArray], written: Sequence[IntArray]
) -> tuple[Delivery, ...]:
    """Return every message of the rounds that have digests, int64 `[messages]` each."""
    rounds = zip(own.rounds, names, wire, written, strict=False)
    return tuple(
        Delivery(
            round=item.number,
            peer=message.peer,
            wire=hex_digest(on_wire),
            written=hex_digest(kept),
            tensors=tensors,
        )
        for item, *columns in rounds
        for message, tensors, on_wire, kept in zip(item.messages, *columns, strict=True)
    )


def by_peer(deliveries: Iterable[Delivery]) -> tuple[Delivery, ...]:
    """Put what passed between the same two ranks in all rounds together, unless it is already."""
    peers: dict[int, list[Delivery]] = {}
    for item in deliveries:
        peers.setdefault(item.peer, []).append(item)
    if all(len(items) == 1 and items[0].round == ALL_ROUNDS for items in peers.values()):
        return tuple(items[0] for _, items in sorted(peers.items()))
    return tuple(
        Delivery(
            round=ALL_ROUNDS,
            peer=peer,
            wire=combine(item.wire for item in items),
            written=combine(item.written or "" for item in items),
        )
        for peer, items in sorted(peers.items())
    )


def total_digest(deliveries: Iterable[Delivery]) -> str:
    """Return one digest of all that all receivers hold."""
    digests = (item.whole or item.written or item.wire for item in deliveries)
    return f"sha256:{combine(digests)}"


def combine(digests: Iterable[str]) -> str:
    """Return one digest of several, which depends on their order."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _labels(plan: TransferPlan, side: Side, item: RoundProgram) -> Iterator[tuple[str, ...]]:
    edges = _edges(item) if side is Side.SENDER else [()] * len(item.messages)
    for own in edges:
        yield tuple(sorted({plan.edges[edge].tensor for edge in own}))


def hex_digest(digest: int) -> str:
    """Return the 64 bits of a digest, which int64 holds with a sign."""
    return f"{int(digest) % 2**64:016x}"


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

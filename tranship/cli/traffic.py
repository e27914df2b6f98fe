"""What two plans move, side by side."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from tranship.cli.layout import count, size_text
from tranship.schema.canonical import Json
from tranship.schema.flows import by_rank, stream
from tranship.schema.plan import TransferPlan


@dataclass(frozen=True)
class Traffic:
    """What a plan moves in one update. Bytes are those on the wire, padding included.

    `edges` and `sizes` count edges and bytes by what the edges do.
    """

    edges: dict[str, int]
    sizes: dict[str, int]
    size: int
    sender_most: int
    sender_mean: int
    receiver_most: int
    receiver_mean: int
    moves: int
    rounds: int
    sender_staging: int
    receiver_staging: int


def traffic_of(plan: TransferPlan) -> Traffic:
    """Add up the moves of all edges of a plan."""
    edges, sizes = Counter[str](), Counter[str]()
    sender = np.zeros(plan.sender.world_size, dtype=np.int64)
    receiver = np.zeros(plan.receiver.world_size, dtype=np.int64)
    moves = 0
    for edge in plan.edges:
        part = stream(plan, edge)
        own = by_rank(plan, edge, part)
        sender += own[0]
        receiver += own[1]
        edges[edge.op.value] += 1
        sizes[edge.op.value] += int(part.taken.sum())
        moves += part.moves
    return Traffic(
        dict(edges),
        dict(sizes),
        int(sender.sum()),
        int(sender.max()),
        int(sender.sum()) // len(sender),
        int(receiver.max()),
        int(receiver.sum()) // len(receiver),
        moves,
        len(plan.rounds),
        sum(slot.sender.size for slot in plan.staging.slots),
        sum(slot.receiver.size for slot in plan.staging.slots),
    )


def traffic_rows(old: Traffic, new: Traffic) -> Iterator[tuple[str, str, str]]:
    """Write what two plans move: what it is, before, and after."""
    for op in dict.fromkeys([*old.edges, *new.edges]):
        texts = [
            f"{count(own.edges.get(op, 0), 'edge')}, {size_text(own.sizes.get(op, 0))}"
            for own in (old, new)
        ]
        yield op, texts[0], texts[1]
    yield "bytes in all", size_text(old.size), size_text(new.size)
    yield "most from one sender", size_text(old.sender_most), size_text(new.sender_most)
    yield "mean of senders", size_text(old.sender_mean), size_text(new.sender_mean)
    yield "most to one receiver", size_text(old.receiver_most), size_text(new.receiver_most)
    yield "mean of receivers", size_text(old.receiver_mean), size_text(new.receiver_mean)
    yield "moves", f"{old.moves:,}", f"{new.moves:,}"
    yield "rounds", f"{old.rounds:,}", f"{new.rounds:,}"
    yield "staging of senders", size_text(old.sender_staging), size_text(new.sender_staging)
    yield "staging of receivers", size_text(old.receiver_staging), size_text(new.receiver_staging)


def traffic_members(old: Traffic, new: Traffic) -> dict[str, Json]:
    """Write what two plans move for programs."""
    return {"old": asdict(old), "new": asdict(new)}

"""What two plans move, side by side."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from tranship.cli.layout import count, size_text
from tranship.schema.canonical import Json
from tranship.schema.expression import IntArray
from tranship.schema.moves import edge_moves
from tranship.schema.plan import TransferPlan
from tranship.schema.wire import payload


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
    messages: int
    rounds: int
    staging: int


def traffic_of(plan: TransferPlan) -> Traffic:
    """Add up the moves of all edges of a plan."""
    edges, sizes = Counter[str](), Counter[str]()
    ends: list[IntArray] = [np.zeros((0, 4), dtype=np.int64)]
    for number, edge in enumerate(plan.edges):
        moves = edge_moves(plan, number)
        own = payload(edge, moves).padded
        edges[edge.op.value] += 1
        sizes[edge.op.value] += int(own.sum())
        ends.append(np.stack([moves.round, moves.sender.rank, moves.receiver.rank, own], axis=1))
    every = np.concatenate(ends)
    sender = _loads(every[:, 1], every[:, 3], plan.sender.world_size)
    receiver = _loads(every[:, 2], every[:, 3], plan.receiver.world_size)
    pairs = (every[:, 0] * plan.sender.world_size + every[:, 1]) * plan.receiver.world_size
    return Traffic(
        dict(edges),
        dict(sizes),
        int(every[:, 3].sum()),
        *sender,
        *receiver,
        len(np.unique(pairs + every[:, 2])),
        len(plan.rounds),
        sum(slot.size for slot in plan.staging.slots),
    )


def _loads(ranks: IntArray, sizes: IntArray, world_size: int) -> tuple[int, int]:
    total = np.zeros(world_size, dtype=np.int64)
    np.add.at(total, ranks, sizes)
    return int(total.max()), int(total.sum()) // world_size


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
    yield "messages", f"{old.messages:,}", f"{new.messages:,}"
    yield "rounds", f"{old.rounds:,}", f"{new.rounds:,}"
    yield "staging on each rank", size_text(old.staging), size_text(new.staging)


def traffic_members(old: Traffic, new: Traffic) -> dict[str, Json]:
    """Write what two plans move for programs."""
    return {"old": asdict(old), "new": asdict(new)}

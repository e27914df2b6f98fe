"""One rank of a plan: what it sends, what it receives, and where it reads and writes it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from tranship.cli.at_rank import (
    At,
    Rank,
    at_rank,
    half_at,
    members_text,
    narrowed,
    rank_of,
    where_text,
)
from tranship.cli.layout import HEAD, PLACE, count, flow, size_text
from tranship.cli.show_edge import field, half_lines, transform_lines
from tranship.cli.show_plan import derived_lines, fill_lines
from tranship.schema import indexset
from tranship.schema.canonical import Json
from tranship.schema.manifest import Side
from tranship.schema.moves import Moves, edge_moves, half_instances
from tranship.schema.plan import Edge, PlanSide, TransferPlan
from tranship.schema.wire import payload


@dataclass(frozen=True)
class Share:
    """One rank's part in one edge.

    `indices` and `rounds` are index sets in text form; `peers` gives the number of moves and of
    bytes on the wire for every rank at the other end.
    """

    edge: int
    indices: Mapping[str, str]
    rounds: str
    peers: Mapping[int, tuple[int, int]]

    @property
    def size(self) -> int:
        """Bytes on the wire, padding included."""
        return sum(size for _, size in self.peers.values())


def shares(
    plan: TransferPlan, side: Side, rank: int, tell: Callable[[str], None]
) -> tuple[Share, ...]:
    """Find the part of one rank of `side` in every edge; `tell` hears of each edge before."""
    found: list[Share] = []
    for number, edge in enumerate(plan.edges):
        tell(edge.tensor)
        moves = _moves_of(plan, number, side, rank)
        if moves is not None:
            found.append(_share(edge, moves, side))
    return tuple(found)


def _moves_of(plan: TransferPlan, number: int, side: Side, rank: int) -> Moves | None:
    edge, own = plan.edges[number], np.array([rank], dtype=np.int64)
    if side is Side.RECEIVER:
        moves = edge_moves(plan, number, own)
    elif len(half_instances(edge.sender, edge.indices, plan.sender, own).rank):
        moves = edge_moves(plan, number)
        moves = moves.take(np.flatnonzero(moves.sender.rank == rank))
    else:
        return None
    return moves if len(moves.round) else None


def _share(edge: Edge, moves: Moves, side: Side) -> Share:
    peers = moves.sender.rank if side is Side.RECEIVER else moves.receiver.rank
    sizes = payload(edge, moves).padded
    return Share(
        moves.edge,
        {name: members_text(moves.receiver.environment[name]) for name in edge.indices},
        members_text(moves.round),
        {
            int(peer): (int(np.sum(peers == peer)), int(sizes[peers == peer].sum()))
            for peer in np.unique(peers)
        },
    )


def plan_rank_page(
    plan: TransferPlan, rank: int, parts: Mapping[Side, Sequence[Share]], width: int
) -> Iterator[Text]:
    """Write what a rank does on each side that has it, with its own coordinates put in."""
    for number, (side, own) in enumerate(parts.items()):
        if number:
            yield Text()
        yield from _side_page(plan, side, rank, own, width)


def _side_page(
    plan: TransferPlan, side: Side, number: int, parts: Sequence[Share], width: int
) -> Iterator[Text]:
    own = plan.sender if side is Side.SENDER else plan.receiver
    rank = rank_of(own, number)
    yield from flow((f"{side} rank {number}  ", HEAD), _totals(own, rank, side, parts), width)
    for part in parts:
        edge = plan.edges[part.edge]
        yield Text()
        yield from transform_lines(edge.model_copy(update={"indices": part.indices}), width)
        half = edge.sender if side is Side.SENDER else edge.receiver
        label = "from" if side is Side.SENDER else "to"
        narrow = narrowed(half.at, {**edge.indices, **half.indices}, rank)
        ranks = _label(rank, narrow.at if narrow else {})
        yield from half_lines(label, edge, half_at(half, rank), ranks, width)
        yield from field(_VERB[side], [_amount(part), _when(part)], width)
        yield from field("", _peers(side, [part]), width)
    if side is Side.RECEIVER:
        yield from _own_lines(plan, rank, width)


def _own_lines(plan: TransferPlan, rank: Rank, width: int) -> Iterator[Text]:
    """Write what the receiver does without a sender: fills and derived buffers."""
    for fill in plan.fills:
        narrow = narrowed(fill.at, fill.indices, rank)
        if narrow:
            own = at_rank(fill, rank).model_copy(update={"indices": narrow.indices})
            yield Text()
            yield from fill_lines(own, _label(rank, narrow.at), width)
    for step in plan.derived:
        narrow = narrowed(step.at, step.indices, rank)
        if narrow:
            own = at_rank(step, rank).model_copy(update={"indices": narrow.indices})
            yield Text()
            yield from derived_lines(own, _label(rank, narrow.at), width)


def _label(rank: Rank, at: At) -> str:
    return f"rank {rank.number} {where_text(at)}".rstrip()


_VERB = {Side.SENDER: "sends", Side.RECEIVER: "takes"}
_PEER = {Side.SENDER: "to", Side.RECEIVER: "from"}


def _totals(
    own: PlanSide, rank: Rank, side: Side, parts: Sequence[Share]
) -> Iterator[str | tuple[str, str]]:
    named = [f"{axis.name} {rank.place[axis.name]}" for axis in own.axes]
    if named:
        yield ", ".join(named), PLACE
    size = size_text(sum(part.size for part in parts))
    yield f"{_VERB[side]} {size} in {count(len(parts), 'edge')}"
    yield from _peers(side, parts)


def _amount(part: Share) -> str:
    moves = sum(number for number, _ in part.peers.values())
    return f"{count(moves, 'move')} of {size_text(part.size)}"


def _when(part: Share) -> str:
    return f"in {'round' if part.rounds.isdecimal() else 'rounds'} {part.rounds}"


def _peers(side: Side, parts: Sequence[Share]) -> Iterator[str]:
    """Write what goes to or comes from whom, those of equal size together."""
    sizes: dict[int, int] = {}
    for part in parts:
        for peer, (_, size) in part.peers.items():
            sizes[peer] = sizes.get(peer, 0) + size
    for size in sorted(set(sizes.values()), reverse=True):
        peers = [peer for peer, own in sizes.items() if own == size]
        each = " each" if len(peers) > 1 else ""
        yield f"{size_text(size)}{each} {_PEER[side]} {indexset.to_text(peers)}"


def rank_document(side: Side, parts: Sequence[Share]) -> list[Json]:
    """Write one rank's part of the plan for programs."""
    peer = "receiver" if side is Side.SENDER else "sender"
    return [
        {
            "edge": part.edge,
            "indices": dict(part.indices),
            "rounds": part.rounds,
            "peers": [
                {peer: rank, "moves": moves, "bytes": size}
                for rank, (moves, size) in part.peers.items()
            ],
        }
        for part in parts
    ]

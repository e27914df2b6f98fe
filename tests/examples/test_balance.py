"""No rank sends or receives much more than it must.

What a sender must send at least follows from who holds what, whatever the compiler chose: ranks
that alone hold some boxes share in sending them, so that one of them sends their mean or more.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from tests.examples.catalog import TRANSFERS, load_full, name_of
from tranship.schema.expression import IntArray
from tranship.schema.moves import Moves, edge_cuts, edge_moves
from tranship.schema.plan import Edge, TransferPlan
from tranship.schema.wire import payload

WITHIN = 1.1
"""How much more than its share the most loaded rank may have."""

HELD_BY_ONE_STAGE = {"kimi-k2/ep128"}
"""Every receiver takes the embedding whole, and the first pipeline stage alone holds it."""

Ranks = frozenset[int]


@dataclass(frozen=True)
class Loads:
    """Bytes of every sender and every receiver; and those that some ranks alone can send."""

    sent: IntArray
    received: IntArray
    held: Counter[Ranks]


@pytest.mark.parametrize("transfer", TRANSFERS, ids=name_of)
def test_no_rank_has_much_more_than_its_share(transfer: Path) -> None:
    loads = _loads(load_full(transfer).plan)
    assert loads.received.max() <= WITHIN * loads.received.mean()
    bound = max(_bounds(loads))
    assert loads.sent.max() <= WITHIN * bound
    if name_of(transfer) in HELD_BY_ONE_STAGE:
        assert bound > WITHIN * loads.sent.mean()
    else:
        assert loads.sent.max() <= WITHIN * loads.sent.mean()


def _loads(plan: TransferPlan) -> Loads:
    sent = np.zeros(plan.sender.world_size, dtype=np.int64)
    received = np.zeros(plan.receiver.world_size, dtype=np.int64)
    held: Counter[Ranks] = Counter()
    for number, edge in enumerate(plan.edges):
        moves = edge_moves(plan, number)
        sizes = payload(edge, moves).padded
        np.add.at(sent, moves.sender.rank, sizes)
        np.add.at(received, moves.receiver.rank, sizes)
        _count_holders(plan, edge, moves, sizes, held)
    return Loads(sent, received, held)


def _count_holders(
    plan: TransferPlan, edge: Edge, moves: Moves, sizes: IntArray, held: Counter[Ranks]
) -> None:
    """Add the bytes of every box to the set of ranks that hold it."""
    cuts = edge_cuts(plan, edge)
    assert np.array_equal(cuts.receiver.rank, moves.receiver.rank)
    total = np.zeros(len(cuts.source.first), dtype=np.int64)
    np.add.at(total, cuts.group, sizes)
    rank = cuts.source.instances.rank
    rows = zip(cuts.source.first.tolist(), cuts.source.count.tolist(), total.tolist(), strict=True)
    for first, count, size in rows:
        held[frozenset(rank[first : first + count].tolist())] += size


def _bounds(loads: Loads) -> Iterator[float]:
    """Lower bounds of the most that one rank sends: for holders of one box, and of linked ones."""
    graph: nx.Graph[int] = nx.Graph()
    for holders in loads.held:
        nx.add_path(graph, sorted(holders))
    linked = [frozenset(ranks) for ranks in nx.connected_components(graph)]
    for ranks in {*loads.held, *linked}:
        own = sum(size for holders, size in loads.held.items() if holders <= ranks)
        yield own / len(ranks)
    yield float(loads.sent.mean())

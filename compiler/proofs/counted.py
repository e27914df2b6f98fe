"""The rounds and the bytes of a whole plan, for all ranks and index values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tranship.compiler.proofs.report import at, refuse
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expression import IntArray
from tranship.schema.flows import add_at, place_rounds, received, sent, stream
from tranship.schema.manifest import Side
from tranship.schema.moves import grid_size
from tranship.schema.plan import Edge, TransferPlan

MAX_PLACES = 2**28
"""Most index assignments on receiver ranks of one edge that are looked at."""


@dataclass(frozen=True)
class Counted:
    """For every edge the rounds in which it moves something; the staging bytes of every round.

    `use` `[rounds]` is the most that one rank of a side stages, of the rounds of the list.
    `unreadable` are edges whose round or turn has no value.
    """

    rounds: dict[int, tuple[int, ...]]
    use: Mapping[Side, IntArray]
    unreadable: tuple[Diagnostic, ...]


def count(plan: TransferPlan, numbers: Iterable[int]) -> Counted:
    """Add up the traffic of some edges of a plan; rounds that are not in the list are left out."""
    size = len(plan.rounds)
    tables = [
        np.zeros((size, side.world_size), dtype=np.int64) for side in (plan.sender, plan.receiver)
    ]
    rounds: dict[int, tuple[int, ...]] = {}
    problems: list[Diagnostic] = []
    for number in numbers:
        try:
            rounds[number] = _add(plan, plan.edges[number], tables)
        except (ValueError, KeyError, OverflowError) as error:
            place = f"/edges/{number}"
            problems.append(refuse("TS602", f"{place} cannot be read: {error}", at(place)))
    use = {side: table.max(axis=1, initial=0) for side, table in zip(Side, tables, strict=True)}
    return Counted(rounds, use, tuple(problems))


def _add(plan: TransferPlan, edge: Edge, tables: list[IntArray]) -> tuple[int, ...]:
    """Add an edge's bytes to both sides' tables; return its rounds."""
    if grid_size(edge.indices) * plan.receiver.world_size > MAX_PLACES:
        raise ValueError(f"it has more than {MAX_PLACES} possible moves")
    part = stream(plan, edge)
    number = place_rounds(plan, edge, part)
    shares = (sent(plan, edge, part, [number]), received(part, [number]))
    for table, share in zip(tables, shares, strict=True):
        known = np.flatnonzero((share.labels[0] >= 0) & (share.labels[0] < len(table)))
        add_at(table, share.labels[0][known], share.rank[known], share.size[known])
    distinct: IntArray = np.unique(number)
    return tuple(distinct.tolist())

"""Proof 6: sends and receives pair up, and all ranks can run the rounds in one order.

Axioms: both sides derive their messages from the same moves, so that every message that one side
sends is the one that the other expects (`schema/wire.py`); the rounds run in the order of the list.

- Every edge, fill and derived step names a round of the list.
- A round waits for earlier rounds only: with the order of the list, the graph of who waits for whom
  has no cycle.
- All that one quantization reads, amaxes included, is in its round (`blocks.py`).
"""

from collections.abc import Iterator
from typing import cast

import networkx as nx

from tranship.compiler.proofs.blocks import batches, lonely_bounds, split_blocks
from tranship.compiler.proofs.evidence import Case
from tranship.compiler.proofs.report import at, refuse
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.plan import TransferPlan


def prove_rounds(case: Case) -> Iterator[Diagnostic]:
    """Yield TS650 to TS653."""
    yield from _in_range(case)
    yield from _waits(case.plan)
    for evidence in case.units:
        quantized = batches(evidence)
        yield from split_blocks(evidence, quantized)
        yield from lonely_bounds(evidence, quantized)


def _in_range(case: Case) -> Iterator[Diagnostic]:
    """TS650: rounds that are not in the list."""
    plan, last = case.plan, len(case.plan.rounds) - 1
    named = [
        (f"/edges/{number}/round", round_)
        for number, rounds in case.counted.rounds.items()
        for round_ in rounds
    ]
    named += [(f"/derived/{number}/after", step.after) for number, step in enumerate(plan.derived)]
    named += [
        (f"/rounds/{number}/after", after)
        for number, round_ in enumerate(plan.rounds)
        for after in round_.after
    ]
    told: set[str] = set()
    for pointer, number in named:
        if not 0 <= number <= last and pointer not in told:
            told.add(pointer)
            message = f"round {number} is not in the plan"
            yield refuse("TS650", message, at(pointer), f"0 to {last}", number)


def _waits(plan: TransferPlan) -> Iterator[Diagnostic]:
    """TS652: rounds that wait for one another."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    nx.add_path(graph, range(len(plan.rounds)))
    for number, round_ in enumerate(plan.rounds):
        graph.add_edges_from((after, number) for after in round_.after)
    if not nx.is_directed_acyclic_graph(graph):
        found = cast("list[tuple[int, int]]", nx.find_cycle(graph))
        circle = [number for number, _ in found]
        text = " before ".join(f"round {number}" for number in [*circle, circle[0]])
        yield refuse("TS652", f"rounds wait for one another: {text}", at("/rounds"))

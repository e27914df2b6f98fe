"""Pass 4: where several sender ranks hold the same box, choose in closed form which one sends."""

from collections.abc import Iterator, Sequence

import numpy as np

from tranship.compiler.draft import draft_plan
from tranship.compiler.inputs import Inputs
from tranship.schema.expression import IntArray
from tranship.schema.flows import Stream, sent, stream
from tranship.schema.placement import share_hosts
from tranship.schema.plan import Edge, TransferPlan

MAX_SHIFTS = 8


def route(inputs: Inputs, edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """Give every edge the turn that keeps the most loaded sender rank least loaded.

    Edges choose one after another, those with the most bytes first; each tries a few closed forms
    (`turns`) on top of the bytes that are placed already, and takes the first of the best. Where
    the placement puts some holders nearer than others, these come first.
    """
    plan, nearest = draft_plan(inputs, ()), _distances_differ(inputs)
    load = np.zeros(inputs.sender.world_size, dtype=np.int64)
    streams = [stream(plan, edge, list(edge.indices)[:1]) for edge in edges]
    bytes_of = [int(part.taken.sum()) for part in streams]
    result = list(edges)
    for number in sorted(range(len(edges)), key=lambda n: (-bytes_of[n], n)):
        part = streams[number]
        result[number], own = _best(inputs, plan, edges[number], part, load, nearest=nearest)
        load += own
    return tuple(result)


def _distances_differ(inputs: Inputs) -> bool:
    worlds = inputs.sender.world_size, inputs.receiver.world_size
    return inputs.placement is not None and share_hosts(inputs.placement, *worlds)


def _best(
    inputs: Inputs,
    plan: TransferPlan,
    edge: Edge,
    part: Stream,
    load: IntArray,
    *,
    nearest: bool,
) -> tuple[Edge, IntArray]:
    choices: list[tuple[tuple[int, int], Edge, IntArray]] = []
    for candidate in _candidates(inputs, edge, part, nearest=nearest):
        share = sent(plan, candidate, part)
        own = np.zeros_like(load)
        np.add.at(own, share.rank, share.size)
        total = load + own
        cost = (int(total.max()), int(np.sum((total // 4096) ** 2)))
        choices.append((cost, candidate, own))
    _, best, own = min(choices, key=lambda choice: choice[0])
    return best, own


def _candidates(inputs: Inputs, edge: Edge, part: Stream, *, nearest: bool) -> Iterator[Edge]:
    copies = int(part.cuts.source.count.max(initial=0))
    if copies <= 1:
        yield edge
        return
    for turn in turns(inputs, edge, copies):
        yield edge.model_copy(update={"turn": turn, "nearest": nearest})


def turns(inputs: Inputs, edge: Edge, copies: int) -> Iterator[int | str]:
    """Closed forms to choose a holder by: receivers in turn, rotated by the first index."""
    axes = inputs.receiver.axes
    strides = {1} | {axis.stride for axis in axes} | {axis.stride * axis.size for axis in axes}
    index = next(iter(edge.indices), None)
    for stride in sorted(s for s in strides if s < inputs.receiver.world_size):
        ranks = "rank" if stride == 1 else f"rank // {stride}"
        if index is not None:
            yield f"{ranks} + {index}"
        else:
            yield ranks
            for shift in range(1, min(copies, MAX_SHIFTS)):
                yield f"{ranks} + {shift}"
    for shift in range(min(copies, MAX_SHIFTS)):
        yield shift if index is None else (f"{index} + {shift}" if shift else index)

"""Pass 5: divide the edges into rounds that fit the staging memory.

Layers travel in waves: one layer of every group of senders (pipeline stage), so that all of them
send in every round. Where waves fit a round, layers fill rounds in that order, and a round is
closed when one more layer would not fit. Where one wave does not fit, all waves are divided alike:
experts are dealt out over its rounds, other tensors go whole to one of them, and a tensor that is
too large comes in windows of rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.compiler.draft import draft_plan
from tranship.compiler.inputs import Inputs
from tranship.compiler.split import Division, Wave, divide
from tranship.compiler.usage import Usage, usage_of
from tranship.schema import indexset
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.expression import IntArray, evaluate, parse
from tranship.schema.flows import traffic
from tranship.schema.mesh import table_arrays
from tranship.schema.moves import index_grid
from tranship.schema.plan import Edge, Round, Slot, Span, Staging, TransferPlan
from tranship.schema.wire import ALIGNMENT

SLOTS = 2
"""Rounds in flight: one is unpacked while the next is packed."""


@dataclass(frozen=True)
class Scheduled:
    """Edges with their rounds, the tables that the rounds use, and the staging memory.

    `last` is the last round of every edge.
    """

    edges: tuple[Edge, ...]
    tables: dict[str, tuple[int, ...]]
    rounds: tuple[Round, ...]
    staging: Staging
    last: tuple[int, ...]


@dataclass(frozen=True)
class _Placed:
    """Edges with their rounds, by number; the tables that these use; the next free round."""

    edges: dict[int, Edge]
    tables: dict[str, tuple[int, ...]]
    end: int


def schedule(inputs: Inputs, edges: Sequence[Edge]) -> Scheduled:
    """Assign every edge a round in closed form.

    Raises:
        DiagnosticError: TS501 a tensor that does not fit the staging memory even in windows.
    """
    capacity = inputs.options.staging_bytes // SLOTS // ALIGNMENT * ALIGNMENT
    layered = sorted({name for edge in edges for name in list(edge.indices)[:1]})
    usage = usage_of(inputs, edges, layered)
    result = list(edges)
    tables: dict[str, tuple[int, ...]] = {}
    next_round = 0
    for name in (*layered, None):
        chosen = [n for n, edge in enumerate(edges) if next(iter(edge.indices), None) == name]
        if name is None:
            placed = _loose(inputs, edges, chosen, usage, capacity, next_round)
        else:
            placed = _layers(inputs, edges, chosen, name, usage, capacity, next_round)
        tables |= placed.tables
        next_round = placed.end
        for number, edge in placed.edges.items():
            result[number] = edge
    return _with_staging(inputs, tuple(result), tables, capacity)


def _layers(
    inputs: Inputs,
    edges: Sequence[Edge],
    chosen: Sequence[int],
    name: str,
    usage: Usage,
    capacity: int,
    first_round: int,
) -> _Placed:
    """Rounds of all edges over index `name`."""
    values = sorted({v for n in chosen for v in indexset.parse(edges[n].indices[name])})
    loads = _by_layer(usage, chosen, name, values)
    waves = interleave(values, [usage.senders(load) for load in loads])
    together = _by_wave(loads, values, waves)
    if int(together.max(initial=0)) > capacity:
        return _divided(inputs, edges, chosen, name, waves, capacity, first_round)
    order = [value for wave in waves for value in wave]
    place = {value: k for k, value in enumerate(values)}
    rounds, end = _fill_rounds([loads[place[value]] for value in order], capacity, first_round)
    table = _table(dict(zip(order, rounds, strict=True)))
    found = {n: _at_round(edges[n], f"round_by_{name}[{name}]") for n in chosen}
    return _Placed(found, {f"round_by_{name}": table}, end)


def _by_layer(usage: Usage, chosen: Sequence[int], name: str, values: Sequence[int]) -> IntArray:
    """The load of every layer, `[layers, columns]`."""
    known = np.array(values, dtype=np.int64)
    return usage.table(
        chosen, len(values), lambda end: np.searchsorted(known, end.indices[name]).astype(np.int64)
    )


def _by_wave(loads: IntArray, values: Sequence[int], waves: Sequence[Sequence[int]]) -> IntArray:
    """The load of every wave, `[waves, columns]`."""
    place = {value: k for k, value in enumerate(values)}
    return np.stack([loads[[place[value] for value in wave]].sum(axis=0) for wave in waves])


def interleave(values: Sequence[int], signatures: Sequence[bytes]) -> list[list[int]]:
    """Put values into waves: the first of every group of equal signature, then the second, ...

    Within a wave groups are in the order of their first values.
    """
    groups: dict[bytes, list[int]] = {}
    for value, signature in zip(values, signatures, strict=True):
        groups.setdefault(signature, []).append(value)
    deepest = max(len(group) for group in groups.values())
    return [[g[k] for g in groups.values() if k < len(g)] for k in range(deepest)]


def _divided(
    inputs: Inputs,
    edges: Sequence[Edge],
    chosen: Sequence[int],
    name: str,
    waves: Sequence[Sequence[int]],
    capacity: int,
    first_round: int,
) -> _Placed:
    """Rounds of waves that do not fit one; of single layers where even divided waves do not."""
    single = [[value] for wave in waves for value in wave]
    attempts = [waves, single] if len(waves) < len(single) else [single]
    problems: list[Diagnostic] = []
    for attempt in attempts:
        wave = _wave(name, attempt)
        division = divide(inputs, edges, chosen, wave, capacity)
        if division.problem is None:
            return _in_waves(edges, chosen, name, attempt, wave, division, first_round)
        problems.append(division.problem)
    raise DiagnosticError(problems[-1:])


def _in_waves(
    edges: Sequence[Edge],
    chosen: Sequence[int],
    name: str,
    waves: Sequence[Sequence[int]],
    wave: Wave,
    division: Division,
    first_round: int,
) -> _Placed:
    """Give every wave as many rounds as the division takes, one wave after another."""
    numbered = list(enumerate(waves))
    base = {v: first_round + k * division.rounds for k, own in numbered for v in own}
    tables = {f"round_by_{name}": _table(base)}
    if any(wave.shift and wave.shift in part.term for part in division.parts.values()):
        tables[f"shift_by_{name}"] = _table({v: k for _, w in numbered for k, v in enumerate(w)})
    text = f"round_by_{name}[{name}]"
    found = {n: _in_division(edges[n], division, n, text) for n in chosen}
    return _Placed(found, tables, first_round + len(waves) * division.rounds)


def _wave(name: str, waves: Sequence[Sequence[int]]) -> Wave:
    """The waves as tables over the layers."""
    size = max(value for wave in waves for value in wave) + 1
    number, place = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for k, wave in enumerate(waves):
        number[wave], place[wave] = k, np.arange(len(wave))
    shift = f"shift_by_{name}[{name}]" if max(map(len, waves)) > 1 else ""
    return Wave(number, place, shift)


def _fill_rounds(loads: Iterable[IntArray], capacity: int, first: int) -> tuple[list[int], int]:
    """Put loads into rounds in order, opening a new one when the next would not fit."""
    rounds: list[int] = []
    number, used = first, None
    for load in loads:
        together = load if used is None else used + load
        if used is not None and int(together.max(initial=0)) > capacity:
            number, together = number + 1, load
        used = together
        rounds.append(number)
    return rounds, number + 1


def _table(values: dict[int, int]) -> tuple[int, ...]:
    """A table over 0 to the largest key; entries for keys that there are not are 0."""
    return tuple(values.get(key, 0) for key in range(max(values) + 1))


def _loose(
    inputs: Inputs,
    edges: Sequence[Edge],
    chosen: Sequence[int],
    usage: Usage,
    capacity: int,
    first_round: int,
) -> _Placed:
    """Rounds of tensors without indices: together while they fit, else divided."""
    if not chosen or int(usage.of(chosen).max(initial=0)) <= capacity:
        found = {n: _at_round(edges[n], str(first_round)) for n in chosen}
        return _Placed(found, {}, first_round + bool(chosen))
    nothing = np.zeros(0, dtype=np.int64)
    division = divide(inputs, edges, chosen, Wave(nothing, nothing, ""), capacity)
    if division.problem is not None:
        raise DiagnosticError([division.problem])
    found = {n: _in_division(edges[n], division, n, str(first_round)) for n in chosen}
    return _Placed(found, {}, first_round + division.rounds)


def _at_round(edge: Edge, text: str) -> Edge:
    return edge.model_copy(update={"round": int(text) if text.isdigit() else text})


def _in_division(edge: Edge, division: Division, number: int, base: str) -> Edge:
    """An edge of a divided wave: its own rounds follow the wave's first."""
    part = division.parts[number]
    changed = edge.model_copy(
        update={"indices": {**edge.indices, **part.indices}, "window": part.window}
    )
    if base.isdigit() and (part.term.isdigit() or not part.term):
        return _at_round(changed, str(int(base) + int(part.term or 0)))
    terms = [base if base != "0" else "", part.term]
    return _at_round(changed, " + ".join(term for term in terms if term))


def _with_staging(
    inputs: Inputs, edges: tuple[Edge, ...], tables: dict[str, tuple[int, ...]], capacity: int
) -> Scheduled:
    """Two slots, used in turns, of the size that the largest round needs on each side."""
    draft = draft_plan(inputs, edges, tables)
    last = tuple(_last_round(draft, edge) for edge in edges)
    count = max(last, default=0) + 1
    rounds = tuple(
        Round(slot=n % SLOTS, after=(n - SLOTS,) if n >= SLOTS else ()) for n in range(count)
    )
    found = traffic(draft.model_copy(update={"rounds": rounds}), edges)
    sizes = [int(table.max(initial=0)) for table in (found.sender, found.receiver)]
    assert max(sizes) <= capacity, "every round was filled up to the capacity only"
    regions = [[Span(offset=k * size, size=size) for k in range(SLOTS)] for size in sizes]
    slots = [Slot(sender=own, receiver=other) for own, other in zip(*regions, strict=True)]
    staging = Staging(budget=inputs.options.staging_bytes, slots=tuple(slots[:count]))
    return Scheduled(edges, tables, rounds, staging, last)


def _last_round(plan: TransferPlan, edge: Edge) -> int:
    """The last round in which an edge may move something."""
    grid = index_grid(edge.indices)
    rounds = evaluate(parse(edge.round), grid, table_arrays(plan.schedule))
    return int(np.max(rounds))

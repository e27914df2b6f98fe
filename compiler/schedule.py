"""Pass 5: divide the edges into rounds that fit the staging memory.

Tensors of one layer travel together. Layers are taken in turns over the senders' groups of ranks
(pipeline stages), so that all of them send in every round, and a round is closed when one more
layer would not fit a slot. A layer, or a tensor without a layer, that does not fit alone is
divided: tensor by tensor, then by its second index, then by windows of rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tranship.compiler.draft import all_moves
from tranship.compiler.inputs import Inputs
from tranship.compiler.split import Division, divide
from tranship.compiler.usage import Usage, usage_of
from tranship.schema import indexset
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.expression import IntArray
from tranship.schema.plan import Edge, Round, Slot, Staging
from tranship.schema.template import parse_template
from tranship.schema.wire import ALIGNMENT, pack_messages, slot_use

SLOTS = 2
"""Rounds in flight: one is unpacked while the next is packed."""


@dataclass(frozen=True)
class Scheduled:
    """Edges with their rounds, the tables that the rounds use, and the staging memory."""

    edges: tuple[Edge, ...]
    tables: dict[str, tuple[int, ...]]
    rounds: tuple[Round, ...]
    staging: Staging


def schedule(inputs: Inputs, edges: Sequence[Edge]) -> Scheduled:
    """Assign every edge a round in closed form.

    Raises:
        DiagnosticError: TS501 a tensor that does not fit the staging memory even in windows.
    """
    capacity = inputs.options.staging_bytes // SLOTS // ALIGNMENT * ALIGNMENT
    usage = usage_of(inputs, edges, all_moves(inputs, edges))
    layered = sorted({name for edge in edges for name in list(edge.indices)[:1]})
    result = list(edges)
    tables: dict[str, tuple[int, ...]] = {}
    next_round = 0
    for name in layered:
        chosen = [n for n, edge in enumerate(edges) if next(iter(edge.indices), None) == name]
        table, placed, next_round = _layers(
            inputs, edges, chosen, name, usage, capacity, next_round
        )
        tables[f"round_by_{name}"] = table
        for number, edge in placed:
            result[number] = edge
    loose = [n for n, edge in enumerate(edges) if not edge.indices]
    for number, edge in _loose(inputs, edges, loose, usage, capacity, next_round):
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
) -> tuple[tuple[int, ...], list[tuple[int, Edge]], int]:
    """Rounds of all edges over index `name`: the table, the edges, and the next free round."""
    values = sorted({v for n in chosen for v in indexset.parse(edges[n].indices[name])})
    loads = {value: usage.of_layer(chosen, value) for value in values}
    order = interleave(values, [usage.senders(loads[value]) for value in values])
    if max(int(load.max(initial=0)) for load in loads.values()) <= capacity:
        rounds, end = _fill_rounds([loads[value] for value in order], capacity, first_round)
        table = _table(values, dict(zip(order, rounds, strict=True)))
        placed = [(n, _at_round(edges[n], f"round_by_{name}[{name}]")) for n in chosen]
        return table, placed, end
    division = divide(inputs, edges, chosen, usage, capacity)
    if division.problem is not None:
        raise DiagnosticError([division.problem])
    table = _table(values, {v: first_round + k * division.rounds for k, v in enumerate(order)})
    placed = [(n, _divided(edges[n], division, n, f"round_by_{name}[{name}]")) for n in chosen]
    return table, placed, first_round + len(order) * division.rounds


def interleave(values: Sequence[int], signatures: Sequence[bytes]) -> list[int]:
    """Take values in turns from the groups of equal signature, groups in order of appearance."""
    seen: dict[bytes, int] = {}
    keyed: list[tuple[int, int]] = []
    for value, signature in zip(values, signatures, strict=True):
        position = seen.get(signature, 0)
        seen[signature] = position + 1
        keyed.append((position, value))
    return [value for _, value in sorted(keyed)]


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


def _table(values: Sequence[int], rounds: dict[int, int]) -> tuple[int, ...]:
    """A table over 0..max(values); entries for values that no edge has are 0."""
    return tuple(rounds.get(value, 0) for value in range(max(values) + 1))


def _loose(
    inputs: Inputs,
    edges: Sequence[Edge],
    chosen: Sequence[int],
    usage: Usage,
    capacity: int,
    first_round: int,
) -> list[tuple[int, Edge]]:
    """Rounds of tensors without indices: together while they fit, else divided."""
    tensors: dict[tuple[str, ...], list[int]] = {}
    for number in chosen:
        tensors.setdefault(parse_template(edges[number].tensor).texts, []).append(number)
    placed: list[tuple[int, Edge]] = []
    number, used = first_round, usage.nothing()
    for members in tensors.values():
        load = usage.of(members)
        if int(load.max(initial=0)) > capacity:
            number += int(bool(used.any()))
            division = divide(inputs, edges, members, usage, capacity)
            if division.problem is not None:
                raise DiagnosticError([division.problem])
            placed += [(n, _divided(edges[n], division, n, str(number))) for n in members]
            number, used = number + division.rounds, usage.nothing()
            continue
        if int((used + load).max(initial=0)) > capacity:
            number, used = number + 1, usage.nothing()
        used = used + load
        placed += [(n, _at_round(edges[n], str(number))) for n in members]
    return placed


def _at_round(edge: Edge, text: str) -> Edge:
    return edge.model_copy(update={"round": int(text) if text.isdigit() else text})


def _divided(edge: Edge, division: Division, number: int, base: str) -> Edge:
    """An edge of a divided layer: its own rounds follow the layer's first."""
    part = division.parts[number]
    term = " + ".join(term for term in (base, part.term) if term)
    fixed = f"{term} + {part.first}" if part.first else term
    changed = edge.model_copy(
        update={"indices": {**edge.indices, **part.indices}, "window": part.window}
    )
    return _at_round(changed, fixed)


def _with_staging(
    inputs: Inputs, edges: tuple[Edge, ...], tables: dict[str, tuple[int, ...]], capacity: int
) -> Scheduled:
    """Two slots of the size that the largest round needs, used in turns."""
    _, messages = pack_messages(edges, all_moves(inputs, edges, tables))
    use = slot_use(messages)
    size = max(use.values(), default=0)
    assert size <= capacity, "every round was filled up to the capacity only"
    count = max(use, default=0) + 1
    rounds = tuple(
        Round(slot=n % SLOTS, after=(n - SLOTS,) if n >= SLOTS else ()) for n in range(count)
    )
    slots = tuple(Slot(offset=k * size, size=size) for k in range(min(SLOTS, count)))
    budget = inputs.options.staging_bytes
    return Scheduled(edges, tables, rounds, Staging(budget=budget, slots=slots))

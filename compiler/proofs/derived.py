"""Proof 3: every derived buffer is recomputed once, after all that its recipe reads is written.

Axioms: the declared roles; that a receiver unpacks the rounds in their order, and runs each step
once its round `after` is unpacked, steps of one round in the order of the list.

- The steps of the plan, on every rank, are exactly the declared derived buffers, each with its own
  recipe and inputs.
- An input that takes part is written in round `after` at the latest. One that is derived has its
  step earlier in the list, after no later round. An alias counts as what it is an alias of.
- No buffer needs itself. Every alias and every input exists on its rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import networkx as nx

from tranship.compiler.proofs.declared import Declared
from tranship.compiler.proofs.evidence import Case, Evidence
from tranship.compiler.proofs.reading import StepReading
from tranship.compiler.proofs.report import and_more, at, refuse
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.records import BufferRecord

Place = tuple[int, str]


def prove_derived(case: Case) -> Iterator[Diagnostic]:
    """Yield TS620 to TS624."""
    for evidence in case.units:
        yield from _derived(evidence)


def _derived(evidence: Evidence) -> Iterator[Diagnostic]:
    missing = list(_references(evidence.receiver))
    yield from missing or _circles(evidence.receiver)
    order = _order(evidence)
    yield from _steps(evidence, order)
    if not missing:
        yield from _in_time(evidence, order)


def _references(known: Declared) -> Iterator[Diagnostic]:
    """TS624: aliases and inputs of buffers that are not declared."""
    place = at("/receiver")
    for buffer in known.buffers:
        needed = buffer.role.inputs if buffer.role.kind == "derived" else ()
        for name in needed:
            if (buffer.rank, name) not in known.buffer_number:
                message = f"'{buffer.name}' on receiver rank {buffer.rank} is derived from '{name}'"
                yield refuse("TS624", f"{message}, which is not declared", place)
        if buffer.role.kind == "alias" and _memory(known, buffer) is None:
            message = f"'{buffer.name}' on receiver rank {buffer.rank} is an alias of no memory"
            yield refuse("TS624", message, place, found=buffer.role.of)


def _memory(known: Declared, buffer: BufferRecord) -> BufferRecord | None:
    """The buffer at the end of a chain of aliases."""
    seen: set[str] = set()
    while buffer.role.kind == "alias":
        number = known.buffer_number.get((buffer.rank, buffer.role.of))
        if number is None or buffer.name in seen:
            return None
        seen.add(buffer.name)
        buffer = known.buffers[number]
    return buffer


def _inputs(known: Declared, buffer: BufferRecord) -> Iterator[tuple[str, BufferRecord]]:
    """The inputs of a derived buffer: their names, and the buffers whose memory they are."""
    for name in buffer.role.inputs:
        held = _memory(known, known.buffers[known.buffer_number[buffer.rank, name]])
        assert held is not None, "references are checked first"
        yield name, held


def _circles(known: Declared) -> Iterator[Diagnostic]:
    """TS623: derived buffers that need themselves."""
    graph: nx.DiGraph[Place] = nx.DiGraph()
    for buffer in known.buffers:
        if buffer.role.kind == "derived":
            graph.add_edges_from(
                ((held.rank, held.name), (buffer.rank, buffer.name))
                for _, held in _inputs(known, buffer)
            )
    if not nx.is_directed_acyclic_graph(graph):
        found = cast("list[tuple[Place, Place]]", nx.find_cycle(graph))
        circle = [place[1] for place, _ in found]
        text = " -> ".join([*circle, circle[0]])
        yield refuse("TS623", f"derived buffers need one another: {text}", at("/receiver"))


@dataclass(frozen=True)
class _Step:
    """Where in the plan a buffer is recomputed: the position of the step, and its instance."""

    reading: StepReading
    row: int


def _order(evidence: Evidence) -> dict[Place, list[_Step]]:
    """The steps of every buffer."""
    found: dict[Place, list[_Step]] = {}
    for reading in evidence.readings.steps:
        for row, place in enumerate(reading.names):
            found.setdefault(place, []).append(_Step(reading, row))
    return found


def _steps(evidence: Evidence, order: dict[Place, list[_Step]]) -> Iterator[Diagnostic]:
    """TS620 and TS621: steps that are not the declared derived buffers."""
    known = evidence.receiver
    derived = {(b.rank, b.name): b for b in known.buffers if b.role.kind == "derived"}
    omitted = [place for place in derived if place not in order]
    if omitted:
        rank, name = omitted[0]
        message = f"derived buffer '{name}' on receiver rank {rank} is never recomputed"
        yield refuse("TS620", message + and_more(len(omitted), "buffer"), at("/derived"))
    for place, steps in order.items():
        rank, name = place
        pointer = at(f"/derived/{steps[-1].reading.number}")
        if place not in derived:
            message = f"'{name}' on receiver rank {rank} is not declared as derived"
            yield refuse("TS621", message, pointer)
        elif len(steps) > 1:
            message = f"'{name}' on receiver rank {rank} is recomputed {len(steps)} times"
            yield refuse("TS621", message, pointer, expected=1, found=len(steps))
        else:
            yield from _same_recipe(derived[place], steps[0])


def _same_recipe(buffer: BufferRecord, step: _Step) -> Iterator[Diagnostic]:
    stated = (step.reading.step.recipe, *step.reading.inputs[step.row])
    declared = (buffer.role.recipe, *buffer.role.inputs)
    if stated != declared:
        message = f"the step of '{buffer.name}' on rank {buffer.rank} is not the declared one"
        yield refuse(
            "TS620",
            message,
            at(f"/derived/{step.reading.number}"),
            expected=_call(*declared),
            found=_call(*stated),
        )


def _call(recipe: str, *inputs: str) -> str:
    return f"{recipe}({', '.join(inputs)})"


def _in_time(evidence: Evidence, order: dict[Place, list[_Step]]) -> Iterator[Diagnostic]:
    """TS622 and TS623: steps that run before an input is written, one for each of the plan."""
    known, last = evidence.receiver, last_rounds(evidence)
    told: set[tuple[int, str]] = set()
    for (rank, name), steps in order.items():
        number = known.buffer_number.get((rank, name))
        if number is None or known.buffers[number].role.kind != "derived":
            continue
        for input_name, held in _inputs(known, known.buffers[number]):
            for step in steps:
                problem = _late(known, order, last, step, input_name, held)
                key = (step.reading.number, problem.code if problem else "")
                if problem and key not in told:
                    told.add(key)
                    yield problem


def _late(
    known: Declared,
    order: dict[Place, list[_Step]],
    last: dict[int, int],
    step: _Step,
    name: str,
    held: BufferRecord,
) -> Diagnostic | None:
    """What is wrong with the time at which a step reads one input."""
    number, after = step.reading.number, step.reading.step.after
    reads = f"step {number} reads '{name}' on receiver rank {held.rank}"
    if held.role.kind == "transfer":
        written = last.get(known.buffer_number[held.rank, held.name], -1)
        if written > after:
            message = f"{reads} before it is written"
            place = at(f"/derived/{number}/after")
            return refuse("TS622", message, place, f"round {written} or later", f"round {after}")
    if held.role.kind == "derived":
        for maker in order.get((held.rank, held.name), []):
            earlier = maker.reading
            if earlier.number >= number or earlier.step.after > after:
                message = f"{reads} before step {earlier.number} recomputes it"
                return refuse("TS623", message, at(f"/derived/{number}"))
    return None


def last_rounds(evidence: Evidence) -> dict[int, int]:
    """The last round that writes each receiver buffer, by its number."""
    last: dict[int, int] = {}
    for reading in evidence.readings.edges:
        ends = [reading.receiver.buffer]
        ends += [reading.receiver.scale_buffer] if reading.edge.receiver.scale else []
        for end in ends:
            _raise(last, end[reading.receiver_row].tolist(), reading.moves.round.tolist())
    for fill in evidence.readings.fills:
        owners = fill.memory.owner.tolist()
        _raise(last, owners, [0] * len(owners))
    return last


def _raise(last: dict[int, int], numbers: list[int], rounds: list[int]) -> None:
    for number, round_ in zip(numbers, rounds, strict=True):
        last[number] = max(last.get(number, -1), round_)

"""Pass 6: write the plan, with fills, derived buffers and the digests of every input."""

from collections.abc import Iterator, Sequence
from typing import cast

import networkx as nx

from tranship.compiler.draft import seats
from tranship.compiler.inputs import Inputs, plan_side
from tranship.compiler.schedule import Scheduled
from tranship.schema.codec import digest, dump
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.manifest import Alias, BufferFamily, Derived, Fill
from tranship.schema.plan import (
    PLAN_FORMAT,
    DerivedStep,
    FillEdge,
    TransferPlan,
    UnusedTensor,
)
from tranship.schema.rules.nametables import split_name

Texts = tuple[str, ...]


def emit(inputs: Inputs, scheduled: Scheduled, unused: Sequence[UnusedTensor]) -> TransferPlan:
    """Write the plan.

    Raises:
        DiagnosticError: TS502 derived buffers that need one another in a circle.
    """
    return TransferPlan(
        format=PLAN_FORMAT,
        policy=digest(dump(inputs.policy)) if inputs.policy else None,
        placement=digest(dump(inputs.placement)) if inputs.placement else None,
        options=digest(dump(inputs.options)),
        sender=plan_side(inputs.sender),
        receiver=plan_side(inputs.receiver),
        seats=seats(inputs),
        schedule=scheduled.tables,
        staging=scheduled.staging,
        rounds=scheduled.rounds,
        edges=scheduled.edges,
        fills=tuple(_fills(inputs)),
        derived=_derived(inputs, scheduled),
        unused=tuple(unused),
    )


def _fills(inputs: Inputs) -> Iterator[FillEdge]:
    for buffer in inputs.receiver.buffers:
        if buffer.role.kind == "transfer":
            for fill in buffer.fills:
                if fill.value is not None:
                    yield _fill_edge(buffer, fill, fill.value)


def _fill_edge(buffer: BufferFamily, fill: Fill, value: int) -> FillEdge:
    return FillEdge(
        buffer=buffer.name,
        dtype=buffer.dtype,
        indices={**buffer.indices, **fill.indices},
        at={**buffer.at, **fill.at},
        offset=fill.offset,
        sizes=fill.sizes,
        strides=fill.strides,
        value=value,
    )


def _derived(inputs: Inputs, scheduled: Scheduled) -> tuple[DerivedStep, ...]:
    """Derived buffers in an order in which every recipe finds its inputs written."""
    families = [b for b in inputs.receiver.buffers if isinstance(b.role, Derived)]
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(families)))
    texts = [split_name(family.name).texts for family in families]
    for number, family in enumerate(families):
        for wanted in _input_texts(family):
            graph.add_edges_from((k, number) for k, own in enumerate(texts) if own == wanted)
    if not nx.is_directed_acyclic_graph(graph):
        raise DiagnosticError([_circle(inputs, families, _cycle(graph))])
    written = _with_aliases(inputs, _last_rounds(scheduled))
    steps: list[DerivedStep] = []
    for number in nx.lexicographical_topological_sort(graph):
        steps.append(_step(families[number], written))
        written[texts[number]] = steps[-1].after
    return tuple(steps)


def _cycle(graph: "nx.DiGraph[int]") -> list[int]:
    found = cast("list[tuple[int, int]]", nx.find_cycle(graph))
    return [source for source, _ in found]


def _input_texts(family: BufferFamily) -> list[Texts]:
    assert isinstance(family.role, Derived)
    return [split_name(name).texts for name in family.role.inputs]


def _last_rounds(scheduled: Scheduled) -> dict[Texts, int]:
    """The last round that writes each receiver buffer family or its scales."""
    last: dict[Texts, int] = {}
    for edge, latest in zip(scheduled.edges, scheduled.last, strict=True):
        names = [edge.receiver.buffer] + (
            [edge.receiver.scale.buffer] if edge.receiver.scale else []
        )
        for name in names:
            texts = split_name(name).texts
            last[texts] = max(last.get(texts, 0), latest)
    return last


def _with_aliases(inputs: Inputs, written: dict[Texts, int]) -> dict[Texts, int]:
    """Add the other names of buffers, which are written when the buffers are."""
    aliases = {
        split_name(buffer.name).texts: split_name(buffer.role.of).texts
        for buffer in inputs.receiver.buffers
        if isinstance(buffer.role, Alias)
    }
    also = {name: written[of] for name, of in aliases.items() if of in written}
    return {name: max(written.get(name, 0), also.get(name, 0)) for name in {**written, **also}}


def _step(family: BufferFamily, written: dict[Texts, int]) -> DerivedStep:
    assert isinstance(family.role, Derived)
    return DerivedStep(
        recipe=family.role.recipe,
        buffer=family.name,
        indices=family.indices,
        at=family.at,
        inputs=family.role.inputs,
        after=max((written.get(texts, 0) for texts in _input_texts(family)), default=0),
    )


def _circle(inputs: Inputs, families: Sequence[BufferFamily], cycle: Sequence[int]) -> Diagnostic:
    names = [families[number].name for number in cycle]
    number = inputs.receiver.buffers.index(families[cycle[0]])
    return Diagnostic(
        code="TS502",
        message=f"derived buffers need one another: {' <- '.join([*names, names[0]])}",
        at=inputs.at("receiver", f"/buffers/{number}/role/inputs"),
        expected="inputs that are transferred, or derived without a circle",
        found=f"a circle of {len(names)}",
        help="name the transferred buffers that the recipe really reads",
    )

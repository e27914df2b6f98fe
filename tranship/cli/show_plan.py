"""A plan for people: its inputs and rounds, and every edge as a reviewer asks about it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from rich.text import Text

from tranship.cli.layout import HEAD, NAME, PLACE, count, flow, index_parts, size_text, table_text
from tranship.cli.notation import region_text
from tranship.cli.show_edge import edge_lines, field, place_text
from tranship.schema.expression import variables
from tranship.schema.manifest import IntExpression, Side
from tranship.schema.moves import index_grid
from tranship.schema.plan import DerivedStep, Edge, FillEdge, Op, PlanSide, TransferPlan
from tranship.schema.template import parse_template

_DIGITS = slice(len("sha256:"), len("sha256:") + 12)


def plan_page(plan: TransferPlan, width: int) -> Iterator[Text]:
    """Write a plan."""
    yield from _overview(plan, width)
    for edge in plan.edges:
        yield Text()
        yield from edge_lines(edge, plan, width)
    for fill in plan.fills:
        yield Text()
        entries = [fill.offset, *fill.sizes, *fill.strides]
        yield from fill_lines(fill, _place(fill.at, entries, plan.receiver), width)
    for step in plan.derived:
        yield Text()
        yield from derived_lines(step, _place(step.at, (), plan.receiver), width)
    for unused in plan.unused:
        yield Text()
        yield from flow(("unused  ", HEAD), [(unused.tensor, NAME)], width)
        yield from field("why", [unused.reason], width)


def _place(
    at: Mapping[str, IntExpression], entries: Iterable[IntExpression], side: PlanSide
) -> str:
    return place_text(at, entries, side.axes, side.world_size)


def _overview(plan: TransferPlan, width: int) -> Iterator[Text]:
    worlds = [f"from {_world(plan.sender)}", f"to {_world(plan.receiver)}"]
    yield from flow(("plan    ", HEAD), worlds, width)
    digests = {
        "sender": plan.sender.manifest,
        "receiver": plan.receiver.manifest,
        "policy": plan.policy,
        "placement": plan.placement,
        "options": plan.options,
    }
    named = [f"{name} {text[_DIGITS]}" for name, text in digests.items() if text]
    yield from flow("inputs  ", named, width)
    yield from flow("edges   ", [edge_counts(plan)], width)
    yield from flow("rounds  ", round_parts(plan), width)
    yield from _tables("", plan.schedule, width)
    yield from _tables("sender's ", plan.sender.tables, width)
    yield from _tables("receiver's ", plan.receiver.tables, width)


def _tables(whose: str, tables: Mapping[str, tuple[int, ...]], width: int) -> Iterator[Text]:
    for name, values in tables.items():
        yield from flow("table   ", [f"{whose}{name}:", *table_text(values)], width)


def _world(side: PlanSide) -> str:
    axes = ", ".join(f"{axis.name} {axis.size}" for axis in side.axes)
    return count(side.world_size, "rank") + (f" ({axes})" if axes else "")


def edge_counts(plan: TransferPlan) -> str:
    """Count edges by what they do, and the tensors that they move."""
    ops = Counter(edge.op.value for edge in plan.edges)
    families = _tensors_of(plan)
    kinds = ", ".join(f"{number} {op}" for op, number in ops.items())
    tensors = count(sum(families.values()), "tensor")
    of = count(len(families), "family", "families")
    return f"{count(len(plan.edges), 'edge')} ({kinds}) for {tensors} of {of}"


def _tensors_of(plan: TransferPlan) -> dict[str, int]:
    """Count the tensors of every family that the plan moves, however many edges move it."""
    members: dict[str, set[tuple[int, ...]]] = {}
    for edge in plan.edges:
        if edge.op is not Op.AMAX:
            members.setdefault(edge.tensor, set()).update(_members(edge))
    return {tensor: len(found) for tensor, found in members.items()}


def _members(edge: Edge) -> list[tuple[int, ...]]:
    """The index assignments that name different tensors; a window is not in the name."""
    names = {name for hole in parse_template(edge.tensor).holes for name in variables(hole)}
    named = {name: members for name, members in edge.indices.items() if name in names}
    grid = index_grid(named)
    return list(zip(*(grid[name].tolist() for name in named), strict=True)) if named else [()]


def round_parts(plan: TransferPlan) -> Iterator[str]:
    """Say how many rounds there are and what they stage, and their order if it is unusual."""
    slots = plan.staging.slots
    yield f"{len(plan.rounds):,} in {count(len(slots), 'staging slot')}"
    sender, receiver = (size_text(sum(slot.of(side).size for slot in slots)) for side in Side)
    held = f"{sender} on each sender, {receiver} on each receiver"
    yield f"{held}, of at most {size_text(plan.staging.budget)}"
    usual = [
        number
        for number, one in enumerate(plan.rounds)
        if one.slot == number % max(len(slots), 1)
        and one.after == ((number - len(slots),) if number >= len(slots) else ())
    ]
    if len(usual) == len(plan.rounds):
        return
    for number, one in enumerate(plan.rounds):
        after = f" after {', '.join(str(before) for before in one.after)}" if one.after else ""
        yield f"round {number}: slot {one.slot}{after}"


def fill_lines(fill: FillEdge, ranks: str, width: int) -> Iterator[Text]:
    """Write a fill on `ranks`."""
    yield from flow(("fill  ", HEAD), [f"{fill.dtype}", f"with {fill.value}"], width)
    yield from field("to", [(ranks, PLACE), *index_parts(fill.indices)], width)
    region = region_text(fill.offset, fill.sizes, fill.strides)
    yield from field("", [f"in {fill.buffer} {region}"], width)
    yield from field("round", ["before the first"], width)


def derived_lines(step: DerivedStep, ranks: str, width: int) -> Iterator[Text]:
    """Write a recipe that runs on `ranks`."""
    yield from flow(("derive  ", HEAD), [f"by {step.recipe}"], width)
    yield from field("to", [(ranks, PLACE), *index_parts(step.indices)], width)
    yield from field("", [f"in {step.buffer}"], width)
    yield from field("from", step.inputs, width)
    yield from field("after", [f"round {step.after}"], width)

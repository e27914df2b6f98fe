"""What a plan says by itself: its expressions have values, its lists and numbers fit each other.

What the edges of a plan do, and whether that is right, is for the verifier.
"""

from collections.abc import Iterator, Mapping, Sequence

from tranship.schema.canonical import Path
from tranship.schema.mesh import axis_ranges, table_arrays
from tranship.schema.plan import DerivedStep, Edge, FillEdge, Half, PlanSide, TransferPlan
from tranship.schema.rules.axes import axes_fit, axes_known
from tranship.schema.rules.expressions import Names, at_sites, list_sites
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.names import (
    axis_names,
    index_names,
    lone_holes,
    plain_holes,
    table_names,
)
from tranship.schema.rules.others import check_seat
from tranship.schema.rules.scopes import Site, check_indices, check_site


def plan_sides(plan: TransferPlan) -> Iterator[Finding]:
    """Check the axes and tables of both sides, the schedule's tables, and the seats."""
    yield from table_names(("schedule",), plan.schedule)
    for side in ("sender", "receiver"):
        mesh: PlanSide = getattr(plan, side)
        yield from axis_names((side, "axes"), [axis.name for axis in mesh.axes])
        yield from axes_fit((side, "axes"), mesh.axes, mesh.world_size)
        yield from table_names((side, "tables"), mesh.tables)
        if plan.seats is not None:
            seat = getattr(plan.seats, side)
            yield from check_seat(("seats", side), seat, mesh.world_size)


def plan_rounds(plan: TransferPlan) -> Iterator[Finding]:
    """Find numbers of slots and rounds that do not exist."""
    slots, rounds = len(plan.staging.slots), len(plan.rounds)
    for number, entry in enumerate(plan.rounds):
        yield from _exists(("rounds", number, "slot"), entry.slot, slots, "slot")
        for place, earlier in enumerate(entry.after):
            yield from _exists(("rounds", number, "after", place), earlier, number, "earlier round")
    for number, step in enumerate(plan.derived):
        # A plan of fills alone has no rounds; its recipes are said to follow round 0.
        yield from _exists(("derived", number, "after"), step.after, max(rounds, 1), "round")


def _exists(path: Path, number: int, count: int, what: str) -> Iterator[Finding]:
    if not 0 <= number < count:
        yield Finding(
            "TS194",
            path,
            f"there is no {what} {number}",
            expected=f"0 to {count - 1}" if count else f"no {what} at all",
            found=str(number),
        )


def plan_entries(plan: TransferPlan) -> Iterator[Finding]:
    """Check the names, expressions and dims of every edge, fill and derived step."""
    sides = {"sender": _names(plan.sender), "receiver": _names(plan.receiver)}
    schedule = Names(sides["receiver"].axes, table_arrays(plan.schedule), {})
    for number, edge in enumerate(plan.edges):
        yield from _edge(("edges", number), edge, sides, schedule)
    for number, fill in enumerate(plan.fills):
        yield from _fill(("fills", number), fill, sides["receiver"])
    for number, step in enumerate(plan.derived):
        yield from _derived(("derived", number), step, sides["receiver"])
    for number, unused in enumerate(plan.unused):
        yield from plain_holes(("unused", number, "tensor"), unused.tensor)


def _names(side: PlanSide) -> Names:
    return Names(axis_ranges(side.axes, side.world_size), table_arrays(side.tables), {})


def _edge(path: Path, edge: Edge, sides: Mapping[str, Names], schedule: Names) -> Iterator[Finding]:
    axes = dict.fromkeys([*sides["sender"].axes, *sides["receiver"].axes], "an axis")
    yield from check_indices((*path, "indices"), edge.indices, {})
    yield from index_names((*path, "indices"), edge.indices, axes)
    yield from plain_holes((*path, "tensor"), edge.tensor)
    _, plain = sides["receiver"].scopes(edge.indices)
    sites = [Site((*path, "tensor"), edge.tensor, plain, is_template=True)]
    if edge.source is not None:
        _, plain = sides["sender"].scopes(edge.indices)
        sites.append(Site((*path, "source"), edge.source, plain, is_template=True))
        yield from lone_holes((*path, "source"), edge.source)
    indices = {**edge.indices, **edge.receiver.indices}
    values, _ = sides["receiver"].scopes(indices)
    times, _ = schedule.scopes(indices)
    if edge.window is not None:
        for field in ("start", "extent"):
            entries = getattr(edge.window, field)
            sites += list_sites((*path, "window", field), entries, values)
            yield from _length((*path, "window", field), entries, len(edge.shape))
    sites += [Site((*path, "turn"), edge.turn, times), Site((*path, "round"), edge.round, times)]
    for site in sites:
        yield from check_site(site)
    for side, names in sides.items():
        yield from _half((*path, side), getattr(edge, side), edge, names)


def _half(path: Path, half: Half, edge: Edge, names: Names) -> Iterator[Finding]:
    yield from check_indices((*path, "indices"), half.indices, edge.indices)
    taken = dict.fromkeys(names.axes, "an axis")
    taken |= dict.fromkeys(edge.indices, "an index of the edge")
    yield from index_names((*path, "indices"), half.indices, taken)
    yield from axes_known((*path, "at"), half.at, list(names.axes))
    yield from lone_holes((*path, "buffer"), half.buffer)
    values, plain = names.scopes({**edge.indices, **half.indices})
    sites = [
        Site((*path, "buffer"), half.buffer, plain, is_template=True),
        Site((*path, "offset"), half.offset, values),
        *at_sites((*path, "at"), half.at, plain),
    ]
    for field in ("start", "extent", "strides", "origin", "step", "block"):
        entries = getattr(half, field)
        yield from _length((*path, field), entries, len(edge.shape))
        if field not in ("step", "block"):
            sites += list_sites((*path, field), entries, values)
    if half.scale is not None:
        inner = (*path, "scale")
        yield from lone_holes((*inner, "buffer"), half.scale.buffer)
        sites.append(Site((*inner, "buffer"), half.scale.buffer, plain, is_template=True))
        sites.append(Site((*inner, "offset"), half.scale.offset, values))
        for field in ("start", "extent", "strides"):
            entries = getattr(half.scale, field)
            yield from _length((*inner, field), entries, len(edge.shape))
            sites += list_sites((*inner, field), entries, values)
    for site in sites:
        yield from check_site(site)


def _fill(path: Path, fill: FillEdge, names: Names) -> Iterator[Finding]:
    yield from check_indices((*path, "indices"), fill.indices, {})
    yield from index_names((*path, "indices"), fill.indices, dict.fromkeys(names.axes, "an axis"))
    yield from axes_known((*path, "at"), fill.at, list(names.axes))
    yield from lone_holes((*path, "buffer"), fill.buffer)
    yield from _length((*path, "strides"), fill.strides, len(fill.sizes))
    values, plain = names.scopes(fill.indices)
    for site in (
        Site((*path, "buffer"), fill.buffer, plain, is_template=True),
        Site((*path, "offset"), fill.offset, values),
        *at_sites((*path, "at"), fill.at, plain),
        *list_sites((*path, "sizes"), fill.sizes, values),
        *list_sites((*path, "strides"), fill.strides, values),
    ):
        yield from check_site(site)


def _derived(path: Path, step: DerivedStep, names: Names) -> Iterator[Finding]:
    yield from check_indices((*path, "indices"), step.indices, {})
    yield from index_names((*path, "indices"), step.indices, dict.fromkeys(names.axes, "an axis"))
    yield from axes_known((*path, "at"), step.at, list(names.axes))
    _, plain = names.scopes(step.indices)
    named = [((*path, "buffer"), step.buffer)]
    named += [((*path, "inputs", place), name) for place, name in enumerate(step.inputs)]
    for place, name in named:
        yield from lone_holes(place, name)
        yield from check_site(Site(place, name, plain, is_template=True))
    for site in at_sites((*path, "at"), step.at, plain):
        yield from check_site(site)


def _length(path: Path, entries: Sequence[object] | None, dims: int) -> Iterator[Finding]:
    if entries is not None and len(entries) != dims:
        yield Finding(
            "TS159",
            path,
            f"{path[-1]} does not have one entry for each dim",
            expected=f"length {dims}",
            found=f"length {len(entries)}",
        )

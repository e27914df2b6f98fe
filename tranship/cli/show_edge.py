"""One edge of a plan for people: what happens to which tensor, from where, to where, and when."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from rich.text import Text

from tranship.cli.layout import HEAD, NAME, PLACE, Words, flow, index_parts, short_name
from tranship.cli.notation import box_text, is_whole, region_text
from tranship.schema import indexset
from tranship.schema.expression import evaluate, parse, variables
from tranship.schema.manifest import Axis, IntExpression
from tranship.schema.mesh import RANK, table_arrays
from tranship.schema.moves import index_grid
from tranship.schema.plan import Edge, Half, Op, PlanSide, TransferPlan

INDENT = 2


def edge_lines(edge: Edge, plan: TransferPlan, width: int) -> Iterator[Text]:
    """Write everything about an edge."""
    yield from transform_lines(edge, width)
    for label, half, side in (
        ("from", edge.sender, plan.sender),
        ("to", edge.receiver, plan.receiver),
    ):
        yield from half_lines(label, edge, half, _ranks_of(half, side), width)
    if edge.window:
        window = box_text(edge.window.start, edge.window.extent, None, edge.shape)
        yield from field("only", [window], width)
    yield from field("round", [str(edge.round), *_rounds(edge, plan)], width)
    route = _route(edge, plan)
    if route:
        yield from field("route", [route], width)


def field(name: str, parts: Iterable[Words], width: int) -> Iterator[Text]:
    """Write one of the lines that describe an edge; one without a name goes on with the last."""
    return flow(f"{name:<6}", parts, width, INDENT)


def transform_lines(edge: Edge, width: int) -> Iterator[Text]:
    """Write what happens, and to which tensors."""
    yield from flow((f"{edge.op}  ", HEAD), _transform(edge), width)
    tied = [f"tied to {edge.source}"] if edge.source else []
    parts: list[Words] = [(edge.tensor, NAME), f"{list(edge.shape)}", *index_parts(edge.indices)]
    yield from flow("", [*parts, *tied], width, INDENT)


def _transform(edge: Edge) -> Iterator[Words]:
    sender, receiver = edge.sender, edge.receiver
    same = sender.dtype is receiver.dtype
    yield f"{sender.dtype}" if same else f"{sender.dtype} to {receiver.dtype}"
    block = receiver.block or sender.block
    if block:
        yield f"in blocks of {' x '.join(str(size) for size in block)}"
    if edge.formula:
        yield f"formula {edge.formula}"
    if edge.op is not Op.COPY:
        yield f"at the {edge.place}"


def half_lines(label: str, edge: Edge, half: Half, ranks: str, width: int) -> Iterator[Text]:
    """Write one end of an edge: which `ranks` have which part of the tensor, and where it lies."""
    whole = is_whole(half.start, half.extent, edge.shape)
    box = "" if whole else box_text(half.start, half.extent, half.step, edge.shape)
    parts: list[Words] = [(ranks, PLACE), box, *index_parts(half.indices)]
    yield from field(label, parts, width)
    region = region_text(half.offset, half.extent, half.strides)
    yield from field("", [f"in {half.buffer} {region}"], width)
    if half.scale:
        scale = half.scale
        place = region_text(scale.offset, scale.extent, scale.strides)
        name = short_name(scale.buffer, half.buffer)
        parts = [f"with {name} {place}", f"{scale.dtype}", *_grid_origin(half)]
        yield from field("", parts, width)


def _grid_origin(half: Half) -> Iterator[str]:
    if half.origin and any(parse(entry) != parse(0) for entry in half.origin):
        yield f"block 0 at [{', '.join(str(entry) for entry in half.origin)}]"


def _ranks_of(half: Half, side: PlanSide) -> str:
    """Say on which ranks a half exists: `pp = stage[layer], every tp, alike on replica`."""
    entries = [*half.start, *half.extent, half.offset, *half.strides]
    if half.scale:
        entries += [*half.scale.start, half.scale.offset]
    return place_text(half.at, entries, side.axes, side.world_size)


def place_text(
    at: Mapping[str, IntExpression],
    entries: Iterable[IntExpression],
    axes: Iterable[Axis],
    world_size: int,
) -> str:
    """Say for which ranks `at` holds, and on which axes what `entries` say depends."""
    if world_size == 1:
        return "rank 0"
    used = {name for entry in entries for name in variables(parse(entry))}
    free = [axis.name for axis in axes if axis.size > 1 and axis.name not in at]
    own = [name for name in free if name in used]
    alike = [name for name in free if name not in used]
    fixed = [f"{name} = {value}" for name, value in at.items()]
    if RANK in at:
        return ", ".join(fixed)
    if RANK in used or not (own or alike):
        return ", ".join([*fixed, "every rank"] if RANK in used or not fixed else fixed)
    parts = [*fixed, *([f"every {', '.join(own)}"] if own else [])]
    if alike:
        parts.append(f"alike on {', '.join(alike)}" if parts else "every rank alike")
    return ", ".join(parts)


def _rounds(edge: Edge, plan: TransferPlan) -> Iterator[str]:
    """The rounds that an expression comes to."""
    if variables(parse(edge.round)):
        grid = index_grid(edge.indices)
        found = evaluate(parse(edge.round), grid, table_arrays(plan.schedule))
        yield f"in {indexset.to_text(np.unique(found).tolist())}"


def _route(edge: Edge, plan: TransferPlan) -> str:
    """Which of several holders sends; nothing where only one holds it."""
    turn = parse(edge.turn)
    if not edge.nearest and turn == parse(0) and "alike" not in _ranks_of(edge.sender, plan.sender):
        return ""
    nearest = "the nearest holders" if edge.nearest else "the holders"
    if turn == parse(0):
        return f"the first of {nearest}"
    return f"number ({edge.turn}) modulo their count among {nearest}"

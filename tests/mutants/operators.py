"""Mutation operators: each changes one thing in a plan that some bug, or some hand, might change.

An operator draws what it changes and returns the mutant, or None where the plan has nothing of the
kind. `codes` are those by which the verifier may refuse its harmful mutants; a mutant may also be
refused as unreadable, by TS602. An operator that `always` harms changes what no run shows, such as
a digest.
"""

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.mutants.editing import (
    Operator,
    distance,
    draw_half,
    exchanged,
    operator,
    plus,
    replaced,
    with_edge,
    with_half,
    with_one_moved,
    without,
    without_one,
)
from tests.mutants.order_operators import (
    close_cycle,
    digest,
    excuse,
    hasten,
    omit_input,
    reorder,
    restage,
    unwait,
)
from tranship.schema.dtypes import DType
from tranship.schema.plan import (
    DerivedStep,
    Edge,
    FillEdge,
    Op,
    Place,
    ScaleHalf,
    TransferPlan,
    Window,
)


@operator("TS610", "TS620", "TS630", "TS647", "TS653", "TS623")
def drop(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Leave out an edge, a fill or a step, or some of its indices."""
    field = data.draw(st.sampled_from(["edges", "fills", "derived"]))
    items: tuple[Edge | FillEdge | DerivedStep, ...] = getattr(plan, field)
    if not items:
        return None
    number = data.draw(st.integers(0, len(items) - 1))
    fewer = without_one(items[number].indices, data)
    if fewer is None or data.draw(st.booleans()):
        return without(plan, field, number)
    return replaced(plan, field, number, items[number].model_copy(update={"indices": fewer}))


@operator("TS611", "TS621", "TS651", "TS660", "TS632")
def duplicate(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Repeat an edge, a fill or a step."""
    field = data.draw(st.sampled_from(["edges", "fills", "derived"]))
    items = getattr(plan, field)
    if not items:
        return None
    item = data.draw(st.sampled_from(items))
    return plan.model_copy(update={field: (*items, item)})


@operator("TS603", "TS605")
def shift(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Move the box, the offset or the scales of a half."""
    number, side, half = draw_half(plan, data)
    by = distance(data)
    field = data.draw(st.sampled_from(["start", "offset", "scale"]))
    if field == "start":
        start = with_one_moved(half.start, data, by)
        return None if start is None else with_half(plan, number, side, start=start)
    if field == "offset":
        return with_half(plan, number, side, offset=plus(half.offset, by))
    if half.scale is None:
        return None
    moved = {"offset": plus(half.scale.offset, by)}
    return with_half(plan, number, side, scale=half.scale.model_copy(update=moved))


@operator("TS607", "TS610", "TS611")
def shift_fill(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Move, resize or change a fill."""
    if not plan.fills:
        return None
    number = data.draw(st.integers(0, len(plan.fills) - 1))
    fill = plan.fills[number]
    by = distance(data)
    changes: list[dict[str, object]] = [
        {"offset": plus(fill.offset, by)},
        {"sizes": with_one_moved(fill.sizes, data, by)},
        {"strides": with_one_moved(fill.strides, data, by)},
        {"value": 1 - fill.value},
        {"dtype": DType.F16},
    ]
    change = data.draw(st.sampled_from(changes))
    return replaced(plan, "fills", number, fill.model_copy(update=change))


@operator("TS603", "TS604", "TS605", "TS608", "TS610", "TS611", "TS613", "TS630")
def swap(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Exchange two dims of a half, or the same part of two edges."""
    field = data.draw(
        st.sampled_from(["sender", "receiver", "tensor", "start", "strides", "order"])
    )
    number, side, half = draw_half(plan, data)
    if field in ("start", "strides"):
        return with_half(plan, number, side, **{field: exchanged(getattr(half, field), data)})
    if field == "order":
        dims = data.draw(st.permutations(range(len(half.start))))
        parts = {name: getattr(half, name) for name in ("start", "extent", "strides")}
        turned = {name: tuple(part[dim] for dim in dims) for name, part in parts.items()}
        return with_half(plan, number, side, **turned)
    other = data.draw(st.integers(0, len(plan.edges) - 1))
    mutant = with_edge(plan, number, **{field: getattr(plan.edges[other], field)})
    return with_edge(mutant, other, **{field: getattr(plan.edges[number], field)})


@operator("TS603", "TS605", "TS608", "TS610", "TS651", "TS647")
def resize(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Change an extent of a half or of its scales, or a size of the tensor."""
    number, side, half = draw_half(plan, data)
    by = distance(data)
    field = data.draw(st.sampled_from(["extent", "scale", "shape"]))
    if field == "extent":
        extent = with_one_moved(half.extent, data, by)
        return None if extent is None else with_half(plan, number, side, extent=extent)
    if field == "shape":
        shape = plan.edges[number].shape
        if not shape:
            return None
        dim = data.draw(st.integers(0, len(shape) - 1))
        sizes = (*shape[:dim], max(shape[dim] + by, 0), *shape[dim + 1 :])
        return with_edge(plan, number, shape=sizes)
    if half.scale is None:
        return None
    moved = {"extent": with_one_moved(half.scale.extent, data, by)}
    return with_half(plan, number, side, scale=half.scale.model_copy(update=moved))


@operator(
    "TS604",
    "TS640",
    "TS641",
    "TS642",
    "TS643",
    "TS610",
    "TS630",
    "TS646",
    "TS647",
    "TS649",
    "TS651",
    "TS653",
    "TS611",
    "TS660",
)
def retype(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Give a half another dtype, or an edge another op."""
    number, side, _ = draw_half(plan, data)
    if data.draw(st.booleans()):
        return with_half(plan, number, side, dtype=data.draw(st.sampled_from(list(DType))))
    return with_edge(plan, number, op=data.draw(st.sampled_from(list(Op))))


@operator("TS601", "TS603", "TS610", "TS611", "TS660", "TS647", "TS651", "TS630")
def reroute(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let a half exist on other ranks, or let other holders send."""
    number, side, half = draw_half(plan, data)
    choice = data.draw(st.sampled_from(["turn", "nearest", "leave", "move", "pin"]))
    if choice == "turn":
        return with_edge(plan, number, turn=data.draw(st.sampled_from([0, 1, 2, "rank", "-1"])))
    if choice == "nearest":
        return with_edge(plan, number, nearest=not plan.edges[number].nearest)
    if choice == "pin":
        return with_half(plan, number, side, at={**half.at, "rank": 0})
    if not half.at:
        return None
    axis = data.draw(st.sampled_from(sorted(half.at)))
    if choice == "leave":
        at = {name: value for name, value in half.at.items() if name != axis}
        return with_half(plan, number, side, at=at)
    at = {**half.at, axis: plus(half.at[axis], data.draw(st.sampled_from([-1, 1])))}
    return with_half(plan, number, side, at=at)


@operator("TS610", "TS611", "TS646", "TS647", "TS651", "TS653", "TS630", "TS644", "TS660")
def cut(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Bound what an edge moves by a window, or divide it between two edges and rounds."""
    number = data.draw(st.integers(0, len(plan.edges) - 1))
    edge = plan.edges[number]
    if not edge.shape or edge.shape[0] < 2:
        return None
    row = data.draw(st.integers(1, edge.shape[0] - 1))
    rest = edge.shape[1:]
    zeros = (0,) * len(rest)
    upper = Window(start=(0, *zeros), extent=(row, *rest))
    mutant = with_edge(plan, number, window=upper)
    if data.draw(st.booleans()):
        return mutant
    lower = Window(start=(row, *zeros), extent=(edge.shape[0] - row, *rest))
    later = len(plan.rounds) - 1 if data.draw(st.booleans()) else edge.round
    other = edge.model_copy(update={"window": lower, "round": later})
    return mutant.model_copy(update={"edges": (*mutant.edges, other)})


@operator("TS604", "TS605", "TS610")
def unpair_scales(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Separate codes from their scales: none, another buffer's, or another half's."""
    number, side, half = draw_half(plan, data)
    if half.scale is None:
        return None
    others = [edge.sender.scale for edge in plan.edges] + [e.receiver.scale for e in plan.edges]
    choices: list[ScaleHalf | None] = [None, half.scale.model_copy(update={"buffer": half.buffer})]
    choices += [scale for scale in others if scale not in (None, half.scale)]
    return with_half(plan, number, side, scale=data.draw(st.sampled_from(choices)))


@operator("TS603", "TS604", "TS605")
def shift_grid(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let the blocks start elsewhere, or number them otherwise."""
    number, side, half = draw_half(plan, data)
    if half.scale is None:
        return None
    by = distance(data)
    if data.draw(st.booleans()):
        origin = half.origin or (0,) * len(half.start)
        return with_half(plan, number, side, origin=with_one_moved(origin, data, by))
    field = data.draw(st.sampled_from(["start", "strides"]))
    moved = {field: with_one_moved(getattr(half.scale, field), data, by)}
    return with_half(plan, number, side, scale=half.scale.model_copy(update=moved))


@operator("TS604")
def round_scales(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Send or hold scales in another dtype."""
    number, side, half = draw_half(plan, data)
    if half.scale is None:
        return None
    dtype = data.draw(st.sampled_from([DType.BF16, DType.F16, DType.F8E8M0FNU, DType.F32]))
    return with_half(plan, number, side, scale=half.scale.model_copy(update={"dtype": dtype}))


@operator("TS604", "TS605", "TS642", "TS643", "TS646", "TS647", "TS649", "TS651", "TS653", "TS660")
def relayout(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Quantize in other blocks, by another formula, or at the other side."""
    number, side, half = draw_half(plan, data)
    edge = plan.edges[number]
    choice = data.draw(st.sampled_from(["block", "formula", "place"]))
    if choice == "block" and half.block is not None:
        sizes = (1, 2, 3, 4, 8, "all")
        block = tuple(data.draw(st.sampled_from(sizes)) for _ in half.block)
        return with_half(plan, number, side, block=block)
    if choice == "formula" and edge.formula is not None:
        formulas = [None, "divide", "reciprocal", "rescale", "power_of_two"]
        return with_edge(plan, number, formula=data.draw(st.sampled_from(formulas)))
    place = Place.RECEIVER if edge.place is Place.SENDER else Place.SENDER
    return with_edge(plan, number, place=place)


@operator("TS603", "TS608", "TS610", "TS611", "TS613", "TS630")
def rename(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Take another tensor, or another buffer, by name."""
    number, side, half = draw_half(plan, data)
    edge = plan.edges[number]
    tensors = [other.tensor for other in plan.edges]
    buffers = [getattr(other, side).buffer for other in plan.edges]
    if half.scale is not None:
        buffers.append(half.scale.buffer)
    choice = data.draw(st.sampled_from(["tensor", "source", "buffer", "untie"]))
    if choice == "buffer":
        return with_half(plan, number, side, buffer=data.draw(st.sampled_from(buffers)))
    if choice == "untie":
        return with_edge(plan, number, source=None if edge.source else edge.tensor)
    return with_edge(plan, number, **{choice: data.draw(st.sampled_from(tensors))})


@operator("TS603", "TS605", "TS607", "TS608", "TS610", "TS611", "TS650", "TS660", "TS620", "TS630")
def garble(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Write something else where an expression or a name was."""
    text = data.draw(st.sampled_from(["", "nobody", "{", "q[rank]", "rank // 0", f"{2**61} * 4"]))
    if plan.fills and data.draw(st.booleans()):
        return replaced(plan, "fills", 0, plan.fills[0].model_copy(update={"offset": text}))
    if plan.derived and data.draw(st.booleans()):
        changed = plan.derived[0].model_copy(update={"inputs": (text,)})
        return replaced(plan, "derived", 0, changed)
    number, side, half = draw_half(plan, data)
    fields = ["tensor", "source", "round", "turn", "buffer", "offset", "at", "start"]
    field = data.draw(st.sampled_from(fields))
    if field in fields[:4]:
        return with_edge(plan, number, **{field: text})
    change: object = {"at": {text: 0}, "start": (text, *half.start[1:])}.get(field, text)
    return with_half(plan, number, side, **{field: change})


OPERATORS: tuple[Operator, ...] = (
    drop,
    duplicate,
    shift,
    shift_fill,
    swap,
    resize,
    retype,
    reroute,
    reorder,
    cut,
    hasten,
    omit_input,
    close_cycle,
    restage,
    unwait,
    unpair_scales,
    shift_grid,
    round_scales,
    relayout,
    rename,
    garble,
    digest,
    excuse,
)
"""All operators."""

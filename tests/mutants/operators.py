"""Mutation operators: each changes one thing in a plan that some bug, or some hand, might change.

An operator draws what it changes and returns the mutant, or None where the plan has nothing of the
kind. `codes` are those by which the verifier may refuse its harmful mutants; a mutant may also be
refused as unreadable, by TS602. An operator that `always` harms changes what no run shows, such as
a digest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tranship.schema import indexset
from tranship.schema.dtypes import DType
from tranship.schema.manifest import IntExpression
from tranship.schema.plan import (
    DerivedStep,
    Edge,
    FillEdge,
    Half,
    Op,
    Place,
    Round,
    ScaleHalf,
    Slot,
    TransferPlan,
    UnusedTensor,
    Window,
)

T = TypeVar("T")
Mutation = Callable[[TransferPlan, DataObject], TransferPlan | None]
Entries = tuple[IntExpression, ...]


@dataclass(frozen=True)
class Operator:
    """A mutation, and the codes by which its harmful mutants may be refused."""

    name: str
    mutate: Mutation
    codes: frozenset[str]
    always: bool


OPERATORS: list[Operator] = []
"""All operators, in the order in which they are defined."""


def operator(*codes: str, always: bool = False) -> Callable[[Mutation], Mutation]:
    """Register a mutation under its own name."""

    def register(mutate: Mutation) -> Mutation:
        allowed = frozenset({"TS602", *codes})
        OPERATORS.append(Operator(mutate.__name__, mutate, allowed, always))
        return mutate

    return register


# What the operators are made of.


def _pick(data: DataObject, items: Sequence[T]) -> T | None:
    return data.draw(st.sampled_from(items)) if items else None


def _with_edge(plan: TransferPlan, number: int, **fields: object) -> TransferPlan:
    return _with(plan, "edges", number, plan.edges[number].model_copy(update=fields))


def _with(plan: TransferPlan, field: str, number: int, item: object) -> TransferPlan:
    items = list(getattr(plan, field))
    items[number] = item
    return plan.model_copy(update={field: tuple(items)})


def _without(plan: TransferPlan, field: str, number: int) -> TransferPlan:
    items = list(getattr(plan, field))
    del items[number]
    return plan.model_copy(update={field: tuple(items)})


def _half(plan: TransferPlan, data: DataObject) -> tuple[int, str, Half]:
    """One half of one edge: the edge's number, the side, the half."""
    number = data.draw(st.integers(0, len(plan.edges) - 1))
    side = data.draw(st.sampled_from(["sender", "receiver"]))
    half: Half = getattr(plan.edges[number], side)
    return number, side, half


def _with_half(plan: TransferPlan, number: int, side: str, **fields: object) -> TransferPlan:
    half: Half = getattr(plan.edges[number], side)
    return _with_edge(plan, number, **{side: half.model_copy(update=fields)})


def _moved(value: IntExpression, by: int) -> IntExpression:
    return value + by if isinstance(value, int) else f"{value} + {by}".replace("+ -", "- ")


def _at(entries: Entries, data: DataObject, by: int) -> Entries | None:
    """The entries with one of them moved."""
    if not entries:
        return None
    dim = data.draw(st.integers(0, len(entries) - 1))
    return (*entries[:dim], _moved(entries[dim], by), *entries[dim + 1 :])


def _distance(data: DataObject) -> int:
    return data.draw(st.sampled_from([-4, -3, -2, -1, 1, 2, 3, 4]))


def _exchanged(entries: tuple[T, ...], data: DataObject) -> tuple[T, ...]:
    if len(entries) < 2:
        return entries
    first, second = data.draw(st.permutations(range(len(entries))))[:2]
    swapped = list(entries)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return tuple(swapped)


def _fewer(indices: dict[str, str], data: DataObject) -> dict[str, str] | None:
    """An index set without one of its members."""
    names = [name for name, text in indices.items() if len(indexset.parse(text)) > 1]
    if not names:
        return None
    name = data.draw(st.sampled_from(names))
    members = indexset.parse(indices[name])
    left = data.draw(st.sampled_from(members))
    return {**indices, name: indexset.to_text(set(members) - {left})}


# The operators.


@operator("TS610", "TS620", "TS630", "TS647", "TS653", "TS623")
def drop(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Leave out an edge, a fill or a step, or some of its indices."""
    field = data.draw(st.sampled_from(["edges", "fills", "derived"]))
    items: tuple[Edge | FillEdge | DerivedStep, ...] = getattr(plan, field)
    if not items:
        return None
    number = data.draw(st.integers(0, len(items) - 1))
    fewer = _fewer(items[number].indices, data)
    if fewer is None or data.draw(st.booleans()):
        return _without(plan, field, number)
    return _with(plan, field, number, items[number].model_copy(update={"indices": fewer}))


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
    number, side, half = _half(plan, data)
    by = _distance(data)
    field = data.draw(st.sampled_from(["start", "offset", "scale"]))
    if field == "start":
        start = _at(half.start, data, by)
        return None if start is None else _with_half(plan, number, side, start=start)
    if field == "offset":
        return _with_half(plan, number, side, offset=_moved(half.offset, by))
    if half.scale is None:
        return None
    moved = {"offset": _moved(half.scale.offset, by)}
    return _with_half(plan, number, side, scale=half.scale.model_copy(update=moved))


@operator("TS607", "TS610", "TS611")
def shift_fill(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Move, resize or change a fill."""
    if not plan.fills:
        return None
    number = data.draw(st.integers(0, len(plan.fills) - 1))
    fill = plan.fills[number]
    by = _distance(data)
    changes: list[dict[str, object]] = [
        {"offset": _moved(fill.offset, by)},
        {"sizes": _at(fill.sizes, data, by)},
        {"strides": _at(fill.strides, data, by)},
        {"value": 1 - fill.value},
        {"dtype": DType.F16},
    ]
    change = data.draw(st.sampled_from(changes))
    return _with(plan, "fills", number, fill.model_copy(update=change))


@operator("TS603", "TS604", "TS605", "TS608", "TS610", "TS611", "TS613", "TS630")
def swap(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Exchange two dims of a half, or the same part of two edges."""
    field = data.draw(
        st.sampled_from(["sender", "receiver", "tensor", "start", "strides", "order"])
    )
    number, side, half = _half(plan, data)
    if field in ("start", "strides"):
        return _with_half(plan, number, side, **{field: _exchanged(getattr(half, field), data)})
    if field == "order":
        dims = data.draw(st.permutations(range(len(half.start))))
        parts = {name: getattr(half, name) for name in ("start", "extent", "strides")}
        turned = {name: tuple(part[dim] for dim in dims) for name, part in parts.items()}
        return _with_half(plan, number, side, **turned)
    other = data.draw(st.integers(0, len(plan.edges) - 1))
    mutant = _with_edge(plan, number, **{field: getattr(plan.edges[other], field)})
    return _with_edge(mutant, other, **{field: getattr(plan.edges[number], field)})


@operator("TS603", "TS605", "TS608", "TS610", "TS651", "TS647")
def resize(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Change an extent of a half or of its scales, or a size of the tensor."""
    number, side, half = _half(plan, data)
    by = _distance(data)
    field = data.draw(st.sampled_from(["extent", "scale", "shape"]))
    if field == "extent":
        extent = _at(half.extent, data, by)
        return None if extent is None else _with_half(plan, number, side, extent=extent)
    if field == "shape":
        shape = plan.edges[number].shape
        dim = data.draw(st.integers(0, len(shape) - 1))
        sizes = (*shape[:dim], max(shape[dim] + by, 0), *shape[dim + 1 :])
        return _with_edge(plan, number, shape=sizes)
    if half.scale is None:
        return None
    moved = {"extent": _at(half.scale.extent, data, by)}
    return _with_half(plan, number, side, scale=half.scale.model_copy(update=moved))


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
    number, side, _ = _half(plan, data)
    if data.draw(st.booleans()):
        return _with_half(plan, number, side, dtype=data.draw(st.sampled_from(list(DType))))
    return _with_edge(plan, number, op=data.draw(st.sampled_from(list(Op))))


@operator("TS601", "TS603", "TS610", "TS611", "TS660", "TS647", "TS651", "TS630")
def reroute(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let a half exist on other ranks, or let other holders send."""
    number, side, half = _half(plan, data)
    choice = data.draw(st.sampled_from(["turn", "nearest", "leave", "move", "pin"]))
    if choice == "turn":
        return _with_edge(plan, number, turn=data.draw(st.sampled_from([0, 1, 2, "rank", "-1"])))
    if choice == "nearest":
        return _with_edge(plan, number, nearest=not plan.edges[number].nearest)
    if choice == "pin":
        return _with_half(plan, number, side, at={**half.at, "rank": 0})
    if not half.at:
        return None
    axis = data.draw(st.sampled_from(sorted(half.at)))
    if choice == "leave":
        at = {name: value for name, value in half.at.items() if name != axis}
        return _with_half(plan, number, side, at=at)
    at = {**half.at, axis: _moved(half.at[axis], data.draw(st.sampled_from([-1, 1])))}
    return _with_half(plan, number, side, at=at)


@operator("TS650", "TS651", "TS653", "TS647", "TS660", "TS622", "TS610")
def reorder(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Move an edge or a fill to another round."""
    last = len(plan.rounds)
    number = data.draw(st.integers(0, len(plan.edges) - 1))
    edge = plan.edges[number]
    choices: list[IntExpression] = [
        0,
        last - 1,
        last,
        _moved(edge.round, 1),
        _moved(edge.round, -1),
    ]
    choices += ["rank"] if last > 1 else []
    if plan.fills and data.draw(st.booleans()):
        fill = data.draw(st.integers(0, len(plan.fills) - 1))
        moved = plan.fills[fill].model_copy(update={"round": last})
        return _with(plan, "fills", fill, moved)
    return _with_edge(plan, number, round=data.draw(st.sampled_from(choices)))


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
    mutant = _with_edge(plan, number, window=upper)
    if data.draw(st.booleans()):
        return mutant
    lower = Window(start=(row, *zeros), extent=(edge.shape[0] - row, *rest))
    later = len(plan.rounds) - 1 if data.draw(st.booleans()) else edge.round
    other = edge.model_copy(update={"window": lower, "round": later})
    return mutant.model_copy(update={"edges": (*mutant.edges, other)})


@operator("TS622", "TS623", "TS650")
def hasten(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Run a step earlier, or the steps in another order."""
    if not plan.derived:
        return None
    if data.draw(st.booleans()):
        return plan.model_copy(update={"derived": tuple(data.draw(st.permutations(plan.derived)))})
    number = data.draw(st.integers(0, len(plan.derived) - 1))
    after = data.draw(st.integers(0, len(plan.rounds)))
    step = plan.derived[number].model_copy(update={"after": after})
    return _with(plan, "derived", number, step)


@operator("TS620", "TS621")
def omit_input(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Leave out, exchange or rename what a recipe reads, or run another recipe."""
    if not plan.derived:
        return None
    number = data.draw(st.integers(0, len(plan.derived) - 1))
    step = plan.derived[number]
    names = [step.buffer, *(other.buffer for other in plan.derived), *step.inputs]
    changes: list[dict[str, object]] = [
        {"inputs": step.inputs[1:]},
        {"inputs": tuple(reversed(step.inputs))},
        {"inputs": (data.draw(st.sampled_from(names)), *step.inputs[1:])},
        {"recipe": data.draw(st.sampled_from([other.recipe for other in plan.derived]))},
        {"buffer": data.draw(st.sampled_from(names))},
    ]
    change = data.draw(st.sampled_from(changes))
    return _with(plan, "derived", number, step.model_copy(update=change))


@operator("TS650", "TS652")
def close_cycle(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let a round wait for itself or for a later one."""
    number = data.draw(st.integers(0, len(plan.rounds) - 1))
    after = data.draw(st.integers(number, len(plan.rounds)))
    round_ = plan.rounds[number]
    waits = round_.model_copy(update={"after": (*round_.after, after)})
    return _with(plan, "rounds", number, waits)


@operator("TS650", "TS660", "TS661", "TS662", "TS670")
def restage(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Change a slot, the budget, or which slot a round takes and what it waits for."""
    staging = plan.staging
    choice = data.draw(st.sampled_from(["slot", "after", "offset", "size", "budget", "drop"]))
    if choice in ("slot", "after"):
        number = data.draw(st.integers(0, len(plan.rounds) - 1))
        slot = data.draw(st.integers(0, len(staging.slots)))
        change = {"slot": slot} if choice == "slot" else {"after": ()}
        return _with(plan, "rounds", number, plan.rounds[number].model_copy(update=change))
    if choice == "budget":
        return _staged(plan, budget=staging.budget // data.draw(st.integers(2, 64)))
    if choice == "drop":
        rounds = plan.rounds[:-1]
        return plan.model_copy(update={"rounds": rounds}) if rounds else None
    number = data.draw(st.integers(0, len(staging.slots) - 1))
    slots = list(staging.slots)
    old = slots[number]
    if choice == "size":
        slots[number] = Slot(offset=old.offset, size=old.size // data.draw(st.integers(2, 8)))
    else:
        offset = data.draw(st.sampled_from([0, 128, 256, staging.budget - 128, staging.budget]))
        slots[number] = Slot(offset=offset, size=old.size)
    return _staged(plan, slots=tuple(slots))


def _staged(plan: TransferPlan, **fields: object) -> TransferPlan:
    return plan.model_copy(update={"staging": plan.staging.model_copy(update=fields)})


@operator("TS670")
def unwait(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let a round wait for other ones than it should."""
    waiting = [number for number, round_ in enumerate(plan.rounds) if round_.after]
    number = _pick(data, waiting)
    if number is None:
        return None
    after = data.draw(st.lists(st.integers(0, number - 1), max_size=2, unique=True))
    changed = Round(slot=plan.rounds[number].slot, after=tuple(after))
    return _with(plan, "rounds", number, changed)


@operator("TS604", "TS605", "TS610")
def unpair_scales(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Separate codes from their scales: none, another buffer's, or another half's."""
    number, side, half = _half(plan, data)
    if half.scale is None:
        return None
    others = [edge.sender.scale for edge in plan.edges] + [e.receiver.scale for e in plan.edges]
    choices: list[ScaleHalf | None] = [None, half.scale.model_copy(update={"buffer": half.buffer})]
    choices += [scale for scale in others if scale not in (None, half.scale)]
    return _with_half(plan, number, side, scale=data.draw(st.sampled_from(choices)))


@operator("TS603", "TS604", "TS605")
def shift_grid(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let the blocks start elsewhere, or number them otherwise."""
    number, side, half = _half(plan, data)
    if half.scale is None:
        return None
    by = _distance(data)
    if data.draw(st.booleans()):
        origin = half.origin or (0,) * len(half.start)
        return _with_half(plan, number, side, origin=_at(origin, data, by))
    field = data.draw(st.sampled_from(["start", "strides"]))
    moved = {field: _at(getattr(half.scale, field), data, by)}
    return _with_half(plan, number, side, scale=half.scale.model_copy(update=moved))


@operator("TS604")
def round_scales(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Send or hold scales in another dtype."""
    number, side, half = _half(plan, data)
    if half.scale is None:
        return None
    dtype = data.draw(st.sampled_from([DType.BF16, DType.F16, DType.F8E8M0FNU, DType.F32]))
    return _with_half(plan, number, side, scale=half.scale.model_copy(update={"dtype": dtype}))


@operator("TS604", "TS605", "TS642", "TS643", "TS646", "TS647", "TS649", "TS651", "TS653", "TS660")
def relayout(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Quantize in other blocks, by another formula, or at the other side."""
    number, side, half = _half(plan, data)
    edge = plan.edges[number]
    choice = data.draw(st.sampled_from(["block", "formula", "place"]))
    if choice == "block" and half.block is not None:
        sizes = (1, 2, 3, 4, 8, "all")
        block = tuple(data.draw(st.sampled_from(sizes)) for _ in half.block)
        return _with_half(plan, number, side, block=block)
    if choice == "formula" and edge.formula is not None:
        formulas = [None, "divide", "reciprocal", "rescale", "power_of_two"]
        return _with_edge(plan, number, formula=data.draw(st.sampled_from(formulas)))
    place = Place.RECEIVER if edge.place is Place.SENDER else Place.SENDER
    return _with_edge(plan, number, place=place)


@operator("TS603", "TS608", "TS610", "TS611", "TS613", "TS630")
def rename(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Take another tensor, or another buffer, by name."""
    number, side, half = _half(plan, data)
    edge = plan.edges[number]
    tensors = [other.tensor for other in plan.edges]
    buffers = [getattr(other, side).buffer for other in plan.edges]
    if half.scale is not None:
        buffers.append(half.scale.buffer)
    choice = data.draw(st.sampled_from(["tensor", "source", "buffer", "untie"]))
    if choice == "buffer":
        return _with_half(plan, number, side, buffer=data.draw(st.sampled_from(buffers)))
    if choice == "untie":
        return _with_edge(plan, number, source=None if edge.source else edge.tensor)
    return _with_edge(plan, number, **{choice: data.draw(st.sampled_from(tensors))})


@operator("TS603", "TS605", "TS607", "TS608", "TS610", "TS611", "TS650", "TS660", "TS620", "TS630")
def garble(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Write something else where an expression or a name was."""
    text = data.draw(st.sampled_from(["", "nobody", "{", "q[rank]", "rank // 0", f"{2**61} * 4"]))
    if plan.fills and data.draw(st.booleans()):
        return _with(plan, "fills", 0, plan.fills[0].model_copy(update={"offset": text}))
    if plan.derived and data.draw(st.booleans()):
        changed = plan.derived[0].model_copy(update={"inputs": (text,)})
        return _with(plan, "derived", 0, changed)
    number, side, half = _half(plan, data)
    fields = ["tensor", "source", "round", "turn", "buffer", "offset", "at", "start"]
    field = data.draw(st.sampled_from(fields))
    if field in fields[:4]:
        return _with_edge(plan, number, **{field: text})
    change: object = {"at": {text: 0}, "start": (text, *half.start[1:])}.get(field, text)
    return _with_half(plan, number, side, **{field: change})


@operator("TS600", "TS601", "TS603", always=True)
def digest(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Claim other inputs: digests, world sizes, axes."""
    false = "sha256:" + data.draw(st.text("0123456789abcdef", min_size=64, max_size=64))
    field = data.draw(
        st.sampled_from(["policy", "placement", "options", "manifest", "size", "axes"])
    )
    if field in ("policy", "placement", "options"):
        return plan.model_copy(update={field: false})
    side = data.draw(st.sampled_from(["sender", "receiver"]))
    frame = getattr(plan, side)
    if field == "manifest":
        change: dict[str, object] = {"manifest": false}
    elif field == "size":
        change = {"world_size": max(1, frame.world_size + data.draw(st.sampled_from([-1, 1])))}
    elif frame.axes:
        axes = [a.model_copy(update={"size": a.size + 1}) for a in frame.axes]
        change = {"axes": data.draw(st.sampled_from([tuple(axes), frame.axes[1:]]))}
    else:
        return None
    return plan.model_copy(update={side: frame.model_copy(update=change)})


@operator("TS630", "TS631", "TS632", always=True)
def excuse(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """List a tensor as unused that the policy does not excuse so, or do not list one."""
    if plan.unused and data.draw(st.booleans()):
        changed = plan.unused[0].model_copy(update={"reason": "because"})
        entries = data.draw(st.sampled_from([(), (changed,), (*plan.unused, *plan.unused)]))
        return plan.model_copy(update={"unused": entries})
    edge = data.draw(st.sampled_from(plan.edges))
    entry = UnusedTensor(tensor=edge.source or edge.tensor, reason="no speculation")
    mutant = plan.model_copy(update={"unused": (*plan.unused, entry)})
    return mutant if data.draw(st.booleans()) else _without(mutant, "edges", plan.edges.index(edge))

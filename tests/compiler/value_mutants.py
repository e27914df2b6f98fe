"""Mutants of plans that differ at one index value, on one rank, or in one entry of a table."""

import re
from collections.abc import Callable, Iterator

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.mutants.editing import draw_half, plus, replaced, with_edge, with_half
from tranship.schema import indexset
from tranship.schema.manifest import IntExpression
from tranship.schema.plan import DerivedStep, Edge, FillEdge, Half, TransferPlan

Mutation = Callable[[TransferPlan, DataObject], TransferPlan | None]


def only_where(name: str, value: int) -> str:
    """An expression that is 1 where `name` has a value, else 0."""
    return f"max(1 - max({name} - {value}, {value} - {name}), 0)"


def _item(plan: TransferPlan, data: DataObject) -> tuple[str, int, Edge | FillEdge | DerivedStep]:
    """An edge, a fill or a step: its field in the plan, and its number there."""
    fields = [name for name in ("edges", "fills", "derived") if getattr(plan, name)]
    field = data.draw(st.sampled_from(fields))
    number = data.draw(st.integers(0, len(getattr(plan, field)) - 1))
    return field, number, getattr(plan, field)[number]


def _spot(
    plan: TransferPlan, data: DataObject, indices: dict[str, str], *, ranks: bool
) -> str | None:
    """An expression that is 1 at one value of an index, or (with `ranks`) of an axis, else 0."""
    values = {name: indexset.parse(text) for name, text in indices.items()}
    if ranks:
        values |= {axis.name: tuple(range(axis.size)) for axis in plan.receiver.axes}
        values["rank"] = tuple(range(plan.receiver.world_size))
    name = data.draw(st.sampled_from(sorted(values))) if values else None
    if name is None:
        return None
    return only_where(name, data.draw(st.sampled_from(values[name])))


def _moved(
    plan: TransferPlan, data: DataObject, text: IntExpression, indices: dict[str, str], ranks: bool
) -> IntExpression | None:
    """An expression with another value at one spot, or with another divisor."""
    divisors = list(re.finditer(r"(// |% )(\d+)", str(text)))
    if divisors and data.draw(st.booleans()):
        found = data.draw(st.sampled_from(divisors))
        number = max(int(found[2]) + data.draw(st.sampled_from([-1, 1])), 1)
        return f"{found.string[: found.start()]}{found[1]}{number}{found.string[found.end() :]}"
    spot = _spot(plan, data, indices, ranks=ranks)
    if spot is None:
        return None
    times = data.draw(st.sampled_from(["", " * -1", " * 2", " * 3"]))
    return f"{text} + {spot}{times}"


def one_value(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let an expression of a half, an edge or a fill differ at one index value or rank."""
    field, number, item = _item(plan, data)
    match item:
        case Edge():
            return _half_value(plan, data)
        case FillEdge():
            name = data.draw(st.sampled_from(["offset", "at"]))
            change = (
                _condition(plan, data, item, item.indices)
                if name == "at"
                else _moved(plan, data, item.offset, item.indices, ranks=True)
            )
        case DerivedStep():
            name, change = "at", _condition(plan, data, item, item.indices)
    if change is None:
        return None
    return replaced(plan, field, number, item.model_copy(update={name: change}))


def _condition(
    plan: TransferPlan,
    data: DataObject,
    item: Half | FillEdge | DerivedStep,
    indices: dict[str, str],
) -> dict[str, IntExpression] | None:
    if not item.at:
        return None
    axis = data.draw(st.sampled_from(sorted(item.at)))
    text = _moved(plan, data, item.at[axis], indices, ranks=False)
    return None if text is None else {**item.at, axis: text}


def _half_value(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    number, side, half = draw_half(plan, data)
    edge = plan.edges[number]
    indices = {**edge.indices, **half.indices}
    field = data.draw(
        st.sampled_from(["start", "extent", "offset", "strides", "at", "scale", "round", "turn"])
    )
    if field in ("round", "turn"):
        text = _moved(plan, data, getattr(edge, field), edge.indices, ranks=True)
        return None if text is None else with_edge(plan, number, **{field: text})
    if field == "at":
        at = _condition(plan, data, half, indices)
        return None if at is None else with_half(plan, number, side, at=at)
    ranks = side == "receiver"
    if field == "offset":
        text = _moved(plan, data, half.offset, indices, ranks)
        return None if text is None else with_half(plan, number, side, offset=text)
    if field == "scale":
        if half.scale is None:
            return None
        text = _moved(plan, data, half.scale.offset, indices, ranks)
        scale = half.scale.model_copy(update={"offset": text})
        return None if text is None else with_half(plan, number, side, scale=scale)
    entries: tuple[IntExpression, ...] = getattr(half, field)
    if not entries:
        return None
    dim = data.draw(st.integers(0, len(entries) - 1))
    text = _moved(plan, data, entries[dim], indices, ranks)
    if text is None:
        return None
    return with_half(plan, number, side, **{field: (*entries[:dim], text, *entries[dim + 1 :])})


def one_member(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Add a value to an index set, take one out, or exchange one."""
    field, number, item = _item(plan, data)
    if not item.indices:
        return None
    name = data.draw(st.sampled_from(sorted(item.indices)))
    members = set(indexset.parse(item.indices[name]))
    change = data.draw(st.sampled_from(["add", "remove", "exchange"]))
    if change != "add" and len(members) > 1:
        members.remove(data.draw(st.sampled_from(sorted(members))))
    if change != "remove":
        members.add(data.draw(st.integers(0, max(members) + 2)))
    indices = {**item.indices, name: indexset.to_text(sorted(members))}
    return replaced(plan, field, number, item.model_copy(update={"indices": indices}))


def one_entry(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Change an entry of a table of the schedule, or exchange two."""
    if not plan.schedule:
        return None
    name = data.draw(st.sampled_from(sorted(plan.schedule)))
    table = list(plan.schedule[name])
    one, two = (data.draw(st.integers(0, len(table) - 1)) for _ in range(2))
    if data.draw(st.booleans()):
        table[one], table[two] = table[two], table[one]
    else:
        table[one] = data.draw(st.integers(0, len(plan.rounds)))
    return plan.model_copy(update={"schedule": {**plan.schedule, name: tuple(table)}})


def one_name(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Change a name so that it is the same for most index values or ranks."""
    field, number, item = _item(plan, data)
    indices, axes = dict(item.indices), [axis.name for axis in plan.receiver.axes]
    match item:
        case Edge():
            number, side, half = draw_half(plan, data)
            edge = plan.edges[number]
            indices = {**edge.indices, **half.indices}
            what = data.draw(st.sampled_from(["tensor", "buffer", "scale"]))
            if what == "tensor":
                text = _renamed(edge.tensor, indices, [], data)
                return None if text is None else with_edge(plan, number, tensor=text)
            if what == "scale":
                if half.scale is None:
                    return None
                text = _renamed(half.scale.buffer, indices, axes, data)
                scale = half.scale.model_copy(update={"buffer": text})
                return None if text is None else with_half(plan, number, side, scale=scale)
            text = _renamed(half.buffer, indices, axes, data)
            return None if text is None else with_half(plan, number, side, buffer=text)
        case FillEdge():
            change: dict[str, object] = {"buffer": _renamed(item.buffer, indices, axes, data)}
        case DerivedStep():
            if data.draw(st.booleans()):
                change = {"buffer": _renamed(item.buffer, indices, axes, data)}
            else:
                place = data.draw(st.integers(0, len(item.inputs) - 1))
                names: list[str | None] = list(item.inputs)
                names[place] = _renamed(item.inputs[place], indices, axes, data)
                change = {"inputs": None if None in names else tuple(names)}
    if None in change.values():
        return None
    return replaced(plan, field, number, item.model_copy(update=change))


def _renamed(name: str, indices: dict[str, str], axes: list[str], data: DataObject) -> str | None:
    """A name with one of its numbers changed."""
    places = list(re.finditer(r"\{[^{}]*\}|\d+", name))
    if not places:
        return None
    found = data.draw(st.sampled_from(places))
    return (
        name[: found.start()]
        + data.draw(st.sampled_from(list(_holes(found[0].strip("{}"), indices, axes, data))))
        + name[found.end() :]
    )


def _holes(old: str, indices: dict[str, str], axes: list[str], data: DataObject) -> Iterator[str]:
    for other in (*indices, *axes, "rank"):
        yield f"{{{other}}}"
        yield f"{{{old} + {only_where(other, data.draw(st.integers(0, 12)))}}}"
    yield f"{{({old}) % {data.draw(st.integers(1, 12))}}}"
    yield f"{{min({old}, {data.draw(st.integers(0, 11))})}}"
    yield str(data.draw(st.integers(0, 11)))


def one_more_index(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Give something an index more, which nothing or one condition reads."""
    field, number, item = _item(plan, data)
    more = {
        data.draw(st.sampled_from(["x", "tp", "rank"])): data.draw(st.sampled_from(["0", "0..1"]))
    }
    if isinstance(item, Edge) and data.draw(st.booleans()):
        side = data.draw(st.sampled_from(["sender", "receiver"]))
        half: Half = getattr(item, side)
        return with_half(plan, number, side, indices={**half.indices, **more})
    return replaced(
        plan, field, number, item.model_copy(update={"indices": {**item.indices, **more}})
    )


def later(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let one edge come in another round than others of its tensors."""
    number = data.draw(st.integers(0, len(plan.edges) - 1))
    return with_edge(
        plan, number, round=plus(plan.edges[number].round, data.draw(st.integers(1, 2)))
    )


VALUE_MUTATIONS: tuple[Mutation, ...] = (
    one_value,
    one_member,
    one_entry,
    one_name,
    one_more_index,
    later,
)
"""All mutations."""

"""Mutation operators on rounds, staging memory, recipes and what a plan says of its inputs."""

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.mutants.editing import operator, pick, plus, replaced, with_edge, without
from tranship.schema.manifest import IntExpression, Side
from tranship.schema.plan import Round, Span, TransferPlan, UnusedTensor


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
        plus(edge.round, 1),
        plus(edge.round, -1),
    ]
    choices += ["rank"] if last > 1 else []
    return with_edge(plan, number, round=data.draw(st.sampled_from(choices)))


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
    return replaced(plan, "derived", number, step)


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
    return replaced(plan, "derived", number, step.model_copy(update=change))


@operator("TS650", "TS652")
def close_cycle(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let a round wait for itself or for a later one."""
    number = data.draw(st.integers(0, len(plan.rounds) - 1))
    after = data.draw(st.integers(number, len(plan.rounds)))
    round_ = plan.rounds[number]
    waits = round_.model_copy(update={"after": (*round_.after, after)})
    return replaced(plan, "rounds", number, waits)


@operator("TS650", "TS660", "TS661", "TS662", "TS670")
def restage(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Change a slot, the budget, or which slot a round takes and what it waits for."""
    staging = plan.staging
    choice = data.draw(st.sampled_from(["slot", "after", "offset", "size", "budget", "drop"]))
    if choice in ("slot", "after"):
        number = data.draw(st.integers(0, len(plan.rounds) - 1))
        slot = data.draw(st.integers(0, len(staging.slots)))
        change = {"slot": slot} if choice == "slot" else {"after": ()}
        return replaced(plan, "rounds", number, plan.rounds[number].model_copy(update=change))
    if choice == "budget":
        return _staged(plan, budget=staging.budget // data.draw(st.integers(2, 64)))
    if choice == "drop":
        rounds = plan.rounds[:-1]
        return plan.model_copy(update={"rounds": rounds}) if rounds else None
    number = data.draw(st.integers(0, len(staging.slots) - 1))
    slots = list(staging.slots)
    side = data.draw(st.sampled_from(Side))
    old = slots[number].of(side)
    if choice == "size":
        new = Span(offset=old.offset, size=old.size // data.draw(st.integers(2, 8)))
    else:
        offset = data.draw(st.sampled_from([0, 128, 256, staging.budget - 128, staging.budget]))
        new = Span(offset=offset, size=old.size)
    slots[number] = slots[number].model_copy(update={side.value: new})
    return _staged(plan, slots=tuple(slots))


def _staged(plan: TransferPlan, **fields: object) -> TransferPlan:
    return plan.model_copy(update={"staging": plan.staging.model_copy(update=fields)})


@operator("TS670")
def unwait(plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    """Let a round wait for other ones than it should."""
    waiting = [number for number, round_ in enumerate(plan.rounds) if round_.after]
    number = pick(data, waiting)
    if number is None:
        return None
    after = data.draw(st.lists(st.integers(0, number - 1), max_size=2, unique=True))
    changed = Round(slot=plan.rounds[number].slot, after=tuple(after))
    return replaced(plan, "rounds", number, changed)


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
    return mutant if data.draw(st.booleans()) else without(mutant, "edges", plan.edges.index(edge))

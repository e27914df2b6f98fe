"""A plan in the making: enough of one to read the moves of its edges."""

from collections.abc import Mapping, Sequence

from tranship.compiler.inputs import BLANK_DIGEST, Inputs, draft_side
from tranship.schema.moves import Moves, edge_moves
from tranship.schema.plan import Edge, Round, Seats, Slot, Staging, TransferPlan


def draft_plan(
    inputs: Inputs, edges: Sequence[Edge], schedule: Mapping[str, tuple[int, ...]] | None = None
) -> TransferPlan:
    """Hold `edges` in a plan, for reading their moves before it is complete."""
    return TransferPlan(
        format="tranship.plan/1",
        options=BLANK_DIGEST,
        sender=draft_side(inputs.sender),
        receiver=draft_side(inputs.receiver),
        staging=Staging(budget=0, slots=(Slot(offset=0, size=0),)),
        rounds=(Round(slot=0),),
        edges=tuple(edges),
        schedule=dict(schedule or {}),
        seats=seats(inputs),
    )


def seats(inputs: Inputs) -> Seats | None:
    """The placement's seats, as the plan repeats them for `nearest` edges."""
    placement = inputs.placement
    return Seats(sender=placement.sender, receiver=placement.receiver) if placement else None


def all_moves(
    inputs: Inputs, edges: Sequence[Edge], schedule: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[Moves, ...]:
    """Compute the moves of every edge, between all ranks."""
    plan = draft_plan(inputs, edges, schedule)
    return tuple(edge_moves(plan, number) for number in range(len(edges)))

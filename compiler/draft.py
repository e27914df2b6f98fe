"""A plan in the making: enough of one to read the moves of its edges."""

from collections.abc import Mapping, Sequence

from tranship.compiler.inputs import BLANK_DIGEST, Inputs, draft_side
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Side
from tranship.schema.moves import Moves, edge_moves
from tranship.schema.plan import Edge, Round, Seats, Staging, TransferPlan


def draft_plan(
    inputs: Inputs, edges: Sequence[Edge], schedule: Mapping[str, tuple[int, ...]] | None = None
) -> TransferPlan:
    """Hold `edges` in a plan, for reading their moves before it is complete."""
    return TransferPlan(
        format="tranship.plan/1",
        options=BLANK_DIGEST,
        sender=draft_side(inputs.sender),
        receiver=draft_side(inputs.receiver),
        staging=Staging(budget=0, slots=()),
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
    inputs: Inputs, edges: Sequence[Edge], ranks: Mapping[Side, IntArray]
) -> tuple[Moves, ...]:
    """Compute the moves of every edge between some ranks of each side."""
    plan = draft_plan(inputs, edges)
    senders, receivers = ranks[Side.SENDER], ranks[Side.RECEIVER]
    return tuple(edge_moves(plan, n, receivers, senders) for n in range(len(edges)))

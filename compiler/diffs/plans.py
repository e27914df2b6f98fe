"""Two plans: what moves otherwise, and what else is different."""

from collections.abc import Iterator

from tranship.compiler.diffs.change import Change
from tranship.compiler.diffs.extras import extra_changes
from tranship.compiler.diffs.plan_edges import edge_changes
from tranship.compiler.diffs.plan_rest import (
    input_changes,
    receiver_changes,
    staging_changes,
    unused_changes,
)
from tranship.compiler.diffs.sides import side_changes
from tranship.schema.plan import TransferPlan

_KNOWN = frozenset(
    {
        "format",
        "policy",
        "placement",
        "options",
        "sender",
        "receiver",
        "seats",
        "schedule",
        "staging",
        "rounds",
        "edges",
        "fills",
        "derived",
        "unused",
    }
)


def plan_changes(old: TransferPlan, new: TransferPlan) -> Iterator[Change]:
    """Compare two plans that `check_plan` finds nothing wrong with."""
    yield from side_changes(old.sender, new.sender, "sender", "/sender")
    yield from side_changes(old.receiver, new.receiver, "receiver", "/receiver")
    yield from edge_changes(old, new)
    yield from receiver_changes(old, new)
    yield from unused_changes(old, new)
    yield from staging_changes(old, new)
    yield from extra_changes(old, new, _KNOWN, "plan", "the plan", "")
    yield from input_changes(old, new)

"""Which rounds share staging memory without one waiting for the other."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from tranship.schema.manifest import Side
from tranship.schema.plan import Slot, TransferPlan


def unordered_rounds(plan: TransferPlan) -> Iterator[tuple[int, int]]:
    """Yield pairs of rounds, earlier first, that share memory and may be in flight together.

    Of all rounds whose slots meet two given ones, neighbours in time are compared: where each waits
    for the one before it, all do.
    """
    earlier = _ancestors(plan)
    slots = plan.staging.slots
    for first in range(len(slots)):
        for second in range(first, len(slots)):
            if _share(slots[first], slots[second]):
                yield from _unordered(plan, earlier, {first, second})


def _ancestors(plan: TransferPlan) -> list[int]:
    """For every round, a bit for each round that is unpacked before it is packed."""
    found: list[int] = []
    for number, round_ in enumerate(plan.rounds):
        before = 0
        for after in round_.after:
            if after < number:
                before |= found[after] | 1 << after
        found.append(before)
    return found


def _share(first: Slot, second: Slot) -> bool:
    """Whether two slots have memory in common on either side."""
    for side in Side:
        one, two = first.of(side), second.of(side)
        if max(one.offset, two.offset) < min(one.offset + one.size, two.offset + two.size):
            return True
    return False


def _unordered(
    plan: TransferPlan, earlier: Sequence[int], slots: set[int]
) -> Iterator[tuple[int, int]]:
    users = [number for number, round_ in enumerate(plan.rounds) if round_.slot in slots]
    for before, after in pairwise(users):
        pair = {plan.rounds[before].slot, plan.rounds[after].slot}
        if pair == slots and not earlier[after] >> before & 1:
            yield before, after

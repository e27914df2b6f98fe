"""What goes wrong in staging memory and in the order of rounds, for the interpreter.

Bytes are counted as they lie: a round takes the first bytes of its slot on each rank, as many as
its messages there have. Any two rounds of which neither waits for the other may overlap in time.
"""

from collections.abc import Iterator, Sequence

from tranship.schema.moves import Moves
from tranship.schema.plan import TransferPlan
from tranship.schema.wire import payload

Use = dict[tuple[str, int], tuple[int, int]]
"""First byte, and the one after the last, on every rank of either side that a round needs."""


def staging_faults(plan: TransferPlan, moves: Sequence[Moves]) -> set[str]:
    """What a run of the plan may run into, whatever its values."""
    return {*_waiting(plan, moves), *_overlaps(plan, _uses(plan, moves))}


def _waiting(plan: TransferPlan, moves: Sequence[Moves]) -> Iterator[str]:
    count = len(plan.rounds)
    rounds = {int(number) for part in moves for number in part.round.tolist()}
    if rounds - set(range(count)):
        yield "moves in no round"
    for number, round_ in enumerate(plan.rounds):
        if any(after >= number for after in round_.after):
            yield "waits for ever"


def _uses(plan: TransferPlan, moves: Sequence[Moves]) -> list[Use]:
    """The staging bytes of every round."""
    sizes: list[dict[tuple[str, int], int]] = [{} for _ in plan.rounds]
    for edge, part in zip(plan.edges, moves, strict=True):
        columns = (part.round, part.sender.rank, part.receiver.rank, payload(edge, part).padded)
        for number, sender, receiver, size in zip(*(c.tolist() for c in columns), strict=True):
            if 0 <= number < len(sizes):
                for end in (("sender", sender), ("receiver", receiver)):
                    sizes[number][end] = sizes[number].get(end, 0) + size
    return [_placed(plan, number, use) for number, use in enumerate(sizes)]


def _placed(plan: TransferPlan, number: int, sizes: dict[tuple[str, int], int]) -> Use:
    slot = plan.rounds[number].slot
    if slot >= len(plan.staging.slots):
        return {end: (-1, -1) for end in sizes}
    found = plan.staging.slots[slot]
    starts = {"sender": found.sender.offset, "receiver": found.receiver.offset}
    return {end: (starts[end[0]], starts[end[0]] + size) for end, size in sizes.items()}


def _overlaps(plan: TransferPlan, uses: Sequence[Use]) -> Iterator[str]:
    before: list[set[int]] = []
    for number, use in enumerate(uses):
        direct = {after for after in plan.rounds[number].after if after < number}
        before.append(direct.union(*(before[after] for after in direct)))
        slot = plan.rounds[number].slot
        for (side, _), (first, last) in use.items():
            if first < 0:
                yield "has no slot"
            elif last > plan.staging.budget:
                yield "stages outside of its memory"
            elif last - first > getattr(plan.staging.slots[slot], side).size:
                yield "stages more than its slot holds"
        for other in set(range(number)) - before[number]:
            for end, (first, last) in use.items():
                low, high = uses[other].get(end, (0, 0))
                if max(first, low) < min(last, high):
                    yield "overwrites live staging"

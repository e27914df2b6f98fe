"""Proof 7: staging memory is large enough, within its budget, and never used twice at a time.

Axioms: a rank's slot holds its messages of a round one after another (`schema/wire.py`); a round's
slot is in use from when its messages are packed until the round is unpacked; a round is packed once
the rounds that it waits for are unpacked, and may overlap in time with all others.

- Every slot lies in the budget, and the budget is what the options allow.
- A slot holds the messages of each of its rounds, on the rank that needs most.
- Rounds in slots that share memory wait for one another. For two rounds of one slot, which the same
  rule covers, see `hazards.py`.
"""

from collections.abc import Iterator

from tranship.compiler.proofs.evidence import Case
from tranship.compiler.proofs.report import at, refuse
from tranship.compiler.proofs.waiting import unordered_rounds
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.manifest import Side
from tranship.schema.wire import ALIGNMENT


def prove_staging(case: Case) -> Iterator[Diagnostic]:
    """Yield TS660 to TS663."""
    yield from _in_budget(case)
    yield from _large_enough(case)
    for first, second in unordered_rounds(case.plan):
        slots = (case.plan.rounds[first].slot, case.plan.rounds[second].slot)
        if slots[0] != slots[1]:
            message = (
                f"rounds {first} and {second} may be in flight together, and their slots "
                f"{slots[0]} and {slots[1]} overlap"
            )
            yield refuse("TS662", message, at(f"/staging/slots/{slots[1]}"))


def _in_budget(case: Case) -> Iterator[Diagnostic]:
    """TS661 and TS663."""
    staging = case.plan.staging
    if case.options and staging.budget != case.options.staging_bytes:
        message = "the staging budget is not the options'"
        yield refuse(
            "TS661",
            message,
            at("/staging/budget"),
            case.options.staging_bytes,
            staging.budget,
        )
    for number, slot in enumerate(staging.slots):
        for side in Side:
            region = slot.of(side)
            place, what = at(f"/staging/slots/{number}/{side}"), f"slot {number} of the {side}s"
            if region.offset + region.size > staging.budget:
                message = f"{what} ends outside of the staging memory"
                end = region.offset + region.size
                yield refuse("TS661", message, place, f"at most {staging.budget}", end)
            if region.offset % ALIGNMENT:
                message = f"{what} does not start at a multiple of {ALIGNMENT} bytes"
                yield refuse("TS663", message, place, found=region.offset)


def _large_enough(case: Case) -> Iterator[Diagnostic]:
    """TS660: rounds without a slot, or with too small a one."""
    plan = case.plan
    for number, round_ in enumerate(plan.rounds):
        place = at(f"/rounds/{number}/slot")
        if round_.slot >= len(plan.staging.slots):
            yield refuse("TS660", f"round {number} has no slot {round_.slot}", place)
            continue
        for side, use in case.counted.use.items():
            needed, size = int(use[number]), plan.staging.slots[round_.slot].of(side).size
            if needed > size:
                what = f"slot {round_.slot} of the {side}s"
                message = f"{what} is too small for the messages of round {number}"
                yield refuse("TS660", message, place, f"{needed} bytes", f"{size} bytes")

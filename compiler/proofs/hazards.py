"""Proof 8: nobody reads what a round has already overwritten.

What a plan both writes and reads is staging memory, and receiver buffers that recipes read.

- Two rounds of one staging slot: the later one waits, directly or through others, until the earlier
  is unpacked. `staging.py` states when a slot is in use.
- A recipe reads no buffer that a round writes after it has run, and no round writes what a recipe
  has made or an alias names: the plan writes into transfer buffers alone (`halves.py`), every
  element of them once (`coverage.py`), all of a recipe's inputs before it runs (`derived.py`).
"""

from collections.abc import Iterator

from tranship.compiler.proofs.evidence import Case
from tranship.compiler.proofs.report import at, refuse
from tranship.compiler.proofs.waiting import unordered_rounds
from tranship.schema.diagnostics import Diagnostic


def prove_hazards(case: Case) -> Iterator[Diagnostic]:
    """Yield TS670."""
    plan = case.plan
    for first, second in unordered_rounds(plan):
        slot = plan.rounds[second].slot
        if plan.rounds[first].slot == slot:
            yield refuse(
                "TS670",
                f"round {second} is packed into slot {slot} while round {first} may be read there",
                at(f"/rounds/{second}/after"),
                expected=f"round {first}, or one that waits for it",
                found=", ".join(map(str, plan.rounds[second].after)) or "none",
            )

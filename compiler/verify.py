"""The verifier: prove that a plan does what the manifests need, or name the edge that does not.

It shares no code with the passes. The plan says what it does (`schema/moves.py`, `schema/wire.py`);
what it should do comes from the manifests' own records, by other arithmetic. The axioms are the
manifests, the policy, the placement and the options; that a manifest is true to a live model is for
tracing and binding to show.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from tranship.compiler.proofs.coverage import prove_coverage
from tranship.compiler.proofs.derived import prove_derived
from tranship.compiler.proofs.digests import prove_digests
from tranship.compiler.proofs.edge_types import prove_edge_types
from tranship.compiler.proofs.evidence import Case, InputDigests, digests_of, gather
from tranship.compiler.proofs.hazards import prove_hazards
from tranship.compiler.proofs.report import PLAN
from tranship.compiler.proofs.rounds import prove_rounds
from tranship.compiler.proofs.staging import prove_staging
from tranship.compiler.proofs.used import prove_used
from tranship.schema.diagnostics import Diagnostic, Location
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Options

__all__ = ["MAX_DIAGNOSTICS", "PLAN", "PROOFS", "InputDigests", "digests_of", "verify"]

MAX_DIAGNOSTICS = 100
"""Most findings that one run reports; a note takes the place of the rest."""

Proof = Callable[[Case], Iterator[Diagnostic]]

PROOFS: tuple[Proof, ...] = (
    prove_digests,  # made from these inputs; every edge refers to declared pieces
    prove_coverage,  # every element written exactly once, with the right value
    prove_derived,  # every derived buffer recomputed after its inputs
    prove_used,  # every sender tensor used or excused
    prove_edge_types,  # every edge allowed; encodings, grids and layouts fit
    prove_rounds,  # one order of rounds, without a cycle
    prove_staging,  # staging memory large enough and never used twice at a time
    prove_hazards,  # nothing read after it was overwritten
)
"""What is proved, in order: codes TS60n belong to the first, TS61n to the second, and so on.

The first establishes how the others may read the plan.
"""


def verify(
    plan: TransferPlan,
    sender: Manifest,
    receiver: Manifest,
    policy: Policy | None = None,
    placement: Placement | None = None,
    *,
    digests: InputDigests,
    options: Options | None = None,
) -> tuple[Diagnostic, ...]:
    """Prove a plan.

    Args:
        plan: What is to be proved.
        sender: The sender's manifest, free of errors.
        receiver: The receiver's manifest, free of errors.
        policy: What the transfer may do beyond lossless edges.
        placement: Where the ranks sit.
        digests: Digests of all inputs, computed from their files or by `digests_of`.
        options: The options behind `digests.options`. Without them, the staging budget and the
            formula of edges that leave a choice are not compared with anything.

    Returns:
        All findings, in the order of `PROOFS`; none if the plan is proved. Locations are in the
        file `PLAN`, for the caller to replace.

    Raises:
        ValueError: a manifest has errors that `check.py` finds.
    """
    case = gather(plan, sender, receiver, policy, placement, options, digests)
    found = list(islice(_findings(case), MAX_DIAGNOSTICS + 1))
    if len(found) > MAX_DIAGNOSTICS:
        message = f"more than {MAX_DIAGNOSTICS} findings; the rest is left out"
        found[MAX_DIAGNOSTICS:] = [Diagnostic("TS699", message, Location(PLAN))]
    return tuple(found)


def _findings(case: Case) -> Iterator[Diagnostic]:
    first, *others = PROOFS
    unfounded = False
    for diagnostic in first(case):
        unfounded = True
        yield diagnostic
    for proof in () if unfounded else others:
        yield from proof(case)

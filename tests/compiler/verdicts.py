"""The verdict on a plan, with and without narrowing it to one of each kind."""

from dataclasses import dataclass

from tranship.compiler.proofs.counted import count
from tranship.compiler.proofs.evidence import Case, digests_of, examine
from tranship.compiler.proofs.units import whole
from tranship.compiler.verify import PROOFS, verify
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Options


@dataclass(frozen=True)
class Transfer:
    """All that a plan is made from."""

    sender: Manifest
    receiver: Manifest
    options: Options
    policy: Policy | None = None
    placement: Placement | None = None


def narrowed_verdict(plan: TransferPlan, made_from: Transfer) -> list[str]:
    """The codes by which the verifier refuses a plan; none if it is proved."""
    inputs = (made_from.sender, made_from.receiver, made_from.policy, made_from.placement)
    digests = digests_of(*inputs, made_from.options)
    return _codes(verify(plan, *inputs, digests=digests, options=made_from.options))


def whole_verdict(plan: TransferPlan, made_from: Transfer) -> list[str]:
    """The same, by looking at every index value on every rank."""
    sender, receiver, options = made_from.sender, made_from.receiver, made_from.options
    shapes = [family.shape for side in (sender, receiver) for family in side.tensors]
    dims = max([1, *(len(shape) for shape in shapes)])
    evidence = examine(whole(plan, sender, receiver), dims, made_from.policy, options)
    policy, placement = made_from.policy, made_from.placement
    case = Case(
        plan=plan,
        sender_manifest=sender,
        receiver_manifest=receiver,
        policy=policy,
        placement=placement,
        options=options,
        digests=digests_of(sender, receiver, policy, placement, options),
        units=(evidence,),
        counted=count(plan, [reading.number for reading in evidence.readings.edges]),
    )
    first, *others = PROOFS
    found = tuple(first(case))
    return _codes(found or tuple(found for proof in others for found in proof(case)))


def _codes(found: tuple[Diagnostic, ...]) -> list[str]:
    return sorted({diagnostic.code for diagnostic in found})

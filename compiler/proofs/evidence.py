"""What every proof is given: the inputs, their declarations as arrays, and the plan as read."""

from dataclasses import dataclass

from tranship.compiler.proofs.declared import Declared, declared
from tranship.compiler.proofs.reading import Readings, read
from tranship.schema.codec import digest, dump
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Options


@dataclass(frozen=True, slots=True)
class InputDigests:
    """`sha256:...` of every input, as `codec.load` gives them; None for one that is not there."""

    sender: str
    receiver: str
    policy: str | None
    placement: str | None
    options: str


def digests_of(
    sender: Manifest,
    receiver: Manifest,
    policy: Policy | None,
    placement: Placement | None,
    options: Options,
) -> InputDigests:
    """Compute the digests of inputs at hand."""
    return InputDigests(
        sender=digest(dump(sender)),
        receiver=digest(dump(receiver)),
        policy=digest(dump(policy)) if policy else None,
        placement=digest(dump(placement)) if placement else None,
        options=digest(dump(options)),
    )


@dataclass(frozen=True)
class Evidence:
    """A plan, the inputs that it is judged by, and both as arrays."""

    plan: TransferPlan
    sender_manifest: Manifest
    receiver_manifest: Manifest
    policy: Policy | None
    placement: Placement | None
    options: Options | None
    digests: InputDigests
    sender: Declared
    receiver: Declared
    readings: Readings


def gather(
    plan: TransferPlan,
    sender: Manifest,
    receiver: Manifest,
    policy: Policy | None,
    placement: Placement | None,
    options: Options | None,
    digests: InputDigests,
) -> Evidence:
    """Expand both manifests and read the plan.

    Raises:
        ValueError: a manifest has errors that `check.py` finds.
    """
    shapes = [family.shape for manifest in (sender, receiver) for family in manifest.tensors]
    dims = max([1, *(len(shape) for shape in shapes)])
    senders, receivers = declared(expand(sender), dims), declared(expand(receiver), dims)
    return Evidence(
        plan=plan,
        sender_manifest=sender,
        receiver_manifest=receiver,
        policy=policy,
        placement=placement,
        options=options,
        digests=digests,
        sender=senders,
        receiver=receivers,
        readings=read(plan, senders, receivers),
    )

"""What every proof is given: the inputs, their declarations as arrays, and the plan as read."""

from dataclasses import dataclass

from tranship.compiler.proofs.counted import Counted, count
from tranship.compiler.proofs.declared import Declared, declared
from tranship.compiler.proofs.reading import Readings, read
from tranship.compiler.proofs.units import Unit, units
from tranship.schema.codec import digest, dump
from tranship.schema.expand import declared_ranks, expand
from tranship.schema.manifest import Manifest, Side
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
    """One unit of a plan (`units.py`), the inputs that it is judged by, and both as arrays.

    Manifests and plan are narrowed to the unit; edges, fills and steps keep their numbers.
    """

    plan: TransferPlan
    sender_manifest: Manifest
    receiver_manifest: Manifest
    policy: Policy | None
    options: Options | None
    sender: Declared
    receiver: Declared
    readings: Readings


@dataclass(frozen=True)
class Case:
    """A plan with all that it is judged by, as declared, and divided into units.

    `counted` has the rounds and bytes of the whole plan.
    """

    plan: TransferPlan
    sender_manifest: Manifest
    receiver_manifest: Manifest
    policy: Policy | None
    placement: Placement | None
    options: Options | None
    digests: InputDigests
    units: tuple[Evidence, ...]
    counted: Counted


def gather(
    plan: TransferPlan,
    sender: Manifest,
    receiver: Manifest,
    policy: Policy | None,
    placement: Placement | None,
    options: Options | None,
    digests: InputDigests,
) -> Case:
    """Divide plan and manifests into units and read each.

    Raises:
        ValueError: a manifest has errors that `check.py` finds.
    """
    shapes = [family.shape for manifest in (sender, receiver) for family in manifest.tensors]
    dims = max([1, *(len(shape) for shape in shapes)])
    parts: tuple[Evidence, ...] = ()
    if _same_meshes(plan, sender, receiver):
        every = units(plan, sender, receiver)
        parts = tuple(examine(unit, dims, policy, options) for unit in every)
    readable = [reading.number for part in parts for reading in part.readings.edges]
    return Case(
        plan=plan,
        sender_manifest=sender,
        receiver_manifest=receiver,
        policy=policy,
        placement=placement,
        options=options,
        digests=digests,
        units=parts,
        counted=count(plan, sorted(readable)),
    )


def _same_meshes(plan: TransferPlan, sender: Manifest, receiver: Manifest) -> bool:
    """Whether the plan can be read with these manifests at all; `digests.py` says why not."""
    return all(
        (stated.world_size, stated.axes, stated.tables) == (true.world_size, true.axes, true.tables)
        and declared_ranks(true) == tuple(range(true.world_size))
        for stated, true in ((plan.sender, sender), (plan.receiver, receiver))
    )


def examine(unit: Unit, dims: int, policy: Policy | None, options: Options | None) -> Evidence:
    """Expand a unit's manifests, with pieces of `dims` dims, and read its part of the plan."""
    sender, receiver = (
        declared(expand(unit.manifests[side], unit.ranks[side].tolist()), dims) for side in Side
    )
    return Evidence(
        plan=unit.plan,
        sender_manifest=unit.manifests[Side.SENDER],
        receiver_manifest=unit.manifests[Side.RECEIVER],
        policy=policy,
        options=options,
        sender=sender,
        receiver=receiver,
        readings=read(unit, sender, receiver),
    )

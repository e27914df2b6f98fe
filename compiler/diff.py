"""What a change means: two manifests, plans, policies, placements or transfer files compared.

Families are matched by the names that they stand for and compared as arrays, so that it does not
matter how the members are divided into families, in which order they are written, and what their
indices are called. Two manifests without changes have the same records (`schema/expand.py`).

Where the two lie on different meshes the older one's rules are read on the newer mesh: what is
reported besides the mesh is what does not follow from it.
"""

from collections.abc import Iterable

from tranship.compiler.diffs.change import Change, Weight
from tranship.compiler.diffs.grants import placement_changes, policy_changes, transfer_changes
from tranship.compiler.diffs.manifests import manifest_changes
from tranship.compiler.diffs.plans import plan_changes
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Transfer

__all__ = [
    "Change",
    "Weight",
    "diff_manifests",
    "diff_placements",
    "diff_plans",
    "diff_policies",
    "diff_transfers",
]

_ORDER = tuple(Weight)


def _ranked(changes: Iterable[Change]) -> tuple[Change, ...]:
    return tuple(sorted(changes, key=lambda change: _ORDER.index(change.weight)))


def diff_manifests(old: Manifest, new: Manifest) -> tuple[Change, ...]:
    """Compare two manifests that `schema.check` finds nothing wrong with.

    Returns:
        What changed, what matters most first; nothing if both say the same.
    """
    return _ranked(manifest_changes(old, new))


def diff_plans(old: TransferPlan, new: TransferPlan) -> tuple[Change, ...]:
    """Compare two plans that `schema.check` finds nothing wrong with; as `diff_manifests`."""
    return _ranked(plan_changes(old, new))


def diff_policies(old: Policy | None, new: Policy | None) -> tuple[Change, ...]:
    """Compare two policies, either of which may be missing; what is granted anew comes first."""
    return _ranked(policy_changes(old, new))


def diff_placements(old: Placement | None, new: Placement | None) -> tuple[Change, ...]:
    """Compare two placements, either of which may be missing."""
    return _ranked(placement_changes(old, new))


def diff_transfers(old: Transfer, new: Transfer) -> tuple[Change, ...]:
    """Compare two transfer files; the files that they name are compared on their own."""
    return _ranked(transfer_changes(old, new))

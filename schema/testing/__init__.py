"""Hypothesis strategies for manifests, meshes, policies, placements and transfers.

For tests of whatever reads or writes tranship's documents. Every strategy draws valid documents:
`check.py` finds nothing in them, and what `transfers` and `manifest_pairs` draw compiles and
verifies. Only `broken_manifests` draws wrong ones, each with the code that names its mistake.

This package alone needs Hypothesis: `pip install 'tranship[testing]'`.
"""

try:
    import hypothesis as _hypothesis
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ModuleNotFoundError(
        "tranship.schema.testing needs Hypothesis: pip install 'tranship[testing]'",
        name=error.name,
    ) from None

from tranship.schema.testing.cases import (
    UNUSED_TENSOR,
    Case,
    Encoding,
    Holding,
    Limits,
    LogicalTensor,
    SideCase,
)
from tranship.schema.testing.documents import (
    Mesh,
    meshes,
    placements,
    policies,
    transfer_files,
)
from tranship.schema.testing.mistakes import BrokenManifest, broken_manifests
from tranship.schema.testing.records import declaration_of, policy_of
from tranship.schema.testing.shards import Shard, shard_of
from tranship.schema.testing.strategies import cases
from tranship.schema.testing.transfers import (
    ManifestPair,
    RandomTransfer,
    declarations,
    manifest_pairs,
    manifests,
    transfers,
)

__all__ = [
    "UNUSED_TENSOR",
    "BrokenManifest",
    "Case",
    "Encoding",
    "Holding",
    "Limits",
    "LogicalTensor",
    "ManifestPair",
    "Mesh",
    "RandomTransfer",
    "Shard",
    "SideCase",
    "broken_manifests",
    "cases",
    "declaration_of",
    "declarations",
    "manifest_pairs",
    "manifests",
    "meshes",
    "placements",
    "policies",
    "policy_of",
    "shard_of",
    "transfer_files",
    "transfers",
]

del _hypothesis

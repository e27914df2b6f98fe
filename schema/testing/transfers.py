"""Strategies for manifests of one side or both, and for whole transfers."""

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side
from tranship.schema.placement import Placement
from tranship.schema.policy import Policy
from tranship.schema.records import Declaration
from tranship.schema.testing.cases import Limits
from tranship.schema.testing.documents import placements
from tranship.schema.testing.records import declaration_of, policy_of
from tranship.schema.testing.strategies import cases
from tranship.schema.transfer import Options


@dataclass(frozen=True)
class ManifestPair:
    """Both sides of the same tensors, and the policy (if any) with which they compile."""

    sender: Manifest
    receiver: Manifest
    policy: Policy | None


@dataclass(frozen=True)
class RandomTransfer:
    """Everything that the compiler takes. It compiles, and the plan verifies."""

    sender: Manifest
    receiver: Manifest
    policy: Policy | None
    placement: Placement | None
    options: Options


@st.composite
def declarations(
    draw: DrawFn, side: Side | str | None = None, limits: Limits | None = None
) -> Declaration:
    """Draw what one side declares, one record per tensor and per buffer on one rank.

    Args:
        draw: Given by Hypothesis.
        side: "sender" or "receiver"; either if it is None.
        limits: How large it may be.
    """
    chosen = draw(st.sampled_from(Side)) if side is None else Side(side)
    return declaration_of(draw(cases(limits)), chosen)


def manifests(
    side: Side | str | None = None, limits: Limits | None = None
) -> st.SearchStrategy[Manifest]:
    """Draw manifests that speak for all ranks of one side.

    They have pipeline stages, uneven and strided shards, axes that overlap, fused, transposed and
    padded buffers, scaled encodings, ties, and derived, constant and alias buffers.

    Args:
        side: "sender" or "receiver"; either if it is None.
        limits: How large they may be.
    """
    return declarations(side, limits).map(fold)


@st.composite
def manifest_pairs(draw: DrawFn, limits: Limits | None = None) -> ManifestPair:
    """Draw a sender and a receiver of the same logical tensors, which compile.

    Args:
        draw: Given by Hypothesis.
        limits: How large either side may be.
    """
    case = draw(cases(limits))
    sender, receiver = (fold(declaration_of(case, side)) for side in (Side.SENDER, Side.RECEIVER))
    return ManifestPair(sender, receiver, policy_of(case))


@st.composite
def transfers(draw: DrawFn, limits: Limits | None = None) -> RandomTransfer:
    """Draw all inputs of a plan: a pair of manifests, with policy, placement and options.

    Args:
        draw: Given by Hypothesis.
        limits: How large either side may be.
    """
    case = draw(cases(limits))
    return RandomTransfer(
        fold(declaration_of(case, Side.SENDER)),
        fold(declaration_of(case, Side.RECEIVER)),
        policy_of(case),
        draw(st.none() | placements()),
        Options(formula=case.formula, staging_bytes=case.staging_bytes),
    )

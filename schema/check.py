"""What must hold of one document beyond its JSON Schema: the rules, and the checks that run them.

The rules of a manifest come in three groups. Each group may rely on the ones before it, and runs
when they found nothing: an expression that does not parse has no value, and a piece of an
undeclared tensor has no box to check. Within a group all findings are collected.
"""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tranship.schema.diagnostics import Diagnostic, report_first
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.positions import Source
from tranship.schema.rules.axes import axes, coordinates_exist
from tranship.schema.rules.encodings import encodings
from tranship.schema.rules.expressions import expressions
from tranship.schema.rules.findings import Finding, Rule, diagnostic
from tranship.schema.rules.geometry import geometry
from tranship.schema.rules.holding import complete, used
from tranship.schema.rules.names import names
from tranship.schema.rules.others import allowances, paths, seats
from tranship.schema.rules.packed_scales import packed_scales
from tranship.schema.rules.plans import plan_entries, plan_rounds, plan_sides
from tranship.schema.rules.quantization import quantization
from tranship.schema.rules.roles import buffers_once, role_references, roles
from tranship.schema.rules.scales import scales
from tranship.schema.rules.shared_blocks import shared_blocks
from tranship.schema.rules.subject import Subject
from tranship.schema.rules.tensor_boxes import tensor_boxes
from tranship.schema.rules.tensors import dims, numbers_in_names, tensors, tensors_of_pieces
from tranship.schema.rules.world import MAX_ROWS, TooManyRows, speaks_for_all
from tranship.schema.transfer import Transfer

__all__ = [
    "MEANING",
    "PLAN_RULES",
    "READING",
    "REFERENCES",
    "check_manifest",
    "check_placement",
    "check_plan",
    "check_policy",
    "check_transfer",
    "speaks_for_all",
]

READING: tuple[Rule[Manifest], ...] = (expressions, names, axes)
"""Every text means something."""

REFERENCES: tuple[Rule[Subject], ...] = (
    numbers_in_names,
    coordinates_exist,
    tensors,
    tensors_of_pieces,
    buffers_once,
    dims,
    encodings,
)
"""Everything that is named is declared once, and has the dims and the kind that it should."""

MEANING: tuple[Rule[Subject], ...] = (
    roles,
    role_references,
    geometry,
    tensor_boxes,
    scales,
    packed_scales,
    shared_blocks,
    complete,
    used,
    quantization,
)
"""What the declarations stand for is possible, and nothing is forgotten or held twice."""

PLAN_RULES: tuple[Rule[TransferPlan], ...] = (plan_sides, plan_rounds, plan_entries)
"""The rules of plans."""


def check_manifest(manifest: Manifest, source: Source | None = None) -> tuple[Diagnostic, ...]:
    """Check one manifest.

    Args:
        manifest: The manifest; it need not speak for all ranks.
        source: Its text, for lines and columns.

    Returns:
        What is wrong, at most `diagnostics.MAX_REPORTED` findings and a note; nothing for a
        manifest that can be used.
    """
    return _report(_check_manifest(manifest), source, "manifest")


def _check_manifest(manifest: Manifest) -> list[Finding]:
    found = _apply(READING, manifest)
    subject = Subject(manifest)
    for rules in (REFERENCES, MEANING):
        found = found or _apply(rules, subject)
    return found


def check_policy(policy: Policy, source: Source | None = None) -> tuple[Diagnostic, ...]:
    """Check one policy; arguments and result as in `check_manifest`."""
    return _report(_apply((allowances,), policy), source, "policy")


def check_placement(placement: Placement, source: Source | None = None) -> tuple[Diagnostic, ...]:
    """Check one placement; arguments and result as in `check_manifest`."""
    return _report(_apply((seats,), placement), source, "placement")


def check_transfer(transfer: Transfer, source: Source | None = None) -> tuple[Diagnostic, ...]:
    """Check one transfer file; arguments and result as in `check_manifest`."""
    return _report(_apply((paths,), transfer), source, "transfer file")


def check_plan(plan: TransferPlan, source: Source | None = None) -> tuple[Diagnostic, ...]:
    """Check that the parts of a plan fit each other; arguments and result as in `check_manifest`.

    A plan without findings can be expanded by `moves.py`. Whether it is right, and whether it fits
    its manifests, is for `compiler/verify.py`.
    """
    return _report(_apply(PLAN_RULES, plan), source, "plan")


T = TypeVar("T")


def _apply(rules: Iterable[Rule[T]], document: T) -> list[Finding]:
    return [finding for rule in rules for finding in _run(rule, document)]


def _run(rule: Rule[T], document: T) -> Iterator[Finding]:
    try:
        yield from rule(document)
    except TooManyRows as error:
        yield Finding(
            "TS135",
            error.path,
            f"the declaration depends on {error.rows:,} combinations of indices and ranks",
            expected=f"at most {MAX_ROWS:,}",
            found=f"{error.rows:,}",
            help="declare shapes and offsets by axes, not by `rank`, where ranks are alike",
        )


def _report(found: list[Finding], source: Source | None, document: str) -> tuple[Diagnostic, ...]:
    file = source.file if source else f"<{document}>"
    return report_first(found, lambda finding: diagnostic(finding, source, file), file)

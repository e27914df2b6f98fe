"""Proof 1: the plan was made from these inputs, and every edge refers to declared pieces.

Axioms: the manifests' records, the placement, and the digests that the caller computed.

- The digests in the plan equal those of the inputs; world sizes, axes, tables and seats, which the
  plan repeats so that its edges can be evaluated, equal the inputs' own.
- Both manifests speak for all of their ranks, and name each buffer once.
- Every half, fill and step of the plan can be evaluated. What it evaluates to on any rank is one
  row of integers, and that row is found among the rows of the declaration (`halves.py`).

The proofs after this one read the plan through what is established here. If it fails, they are
not run.
"""

from collections import Counter
from collections.abc import Iterator

from tranship.compiler.proofs.evidence import Case, Evidence
from tranship.compiler.proofs.halves import check_fills, check_halves
from tranship.compiler.proofs.report import at, refuse
from tranship.schema import indexset
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import PlanSide, Seats
from tranship.schema.template import TemplateError, parse_template


def prove_digests(case: Case) -> Iterator[Diagnostic]:
    """Yield TS600 to TS608."""
    yield from _digests(case)
    for manifest, side, name in (
        (case.sender_manifest, case.plan.sender, Side.SENDER),
        (case.receiver_manifest, case.plan.receiver, Side.RECEIVER),
    ):
        yield from _repeated(manifest, side, name)
        yield from _whole(manifest, name)
    yield from _seats(case)
    yield from _names(case)
    for evidence in case.units:
        yield from _once(evidence)
        yield from evidence.readings.unreadable
        for reading in evidence.readings.edges:
            yield from check_halves(evidence, reading)
        yield from check_fills(evidence)


def _digests(case: Case) -> Iterator[Diagnostic]:
    plan, digests = case.plan, case.digests
    for name, pointer, stated, true in (
        ("sender manifest", "/sender/manifest", plan.sender.manifest, digests.sender),
        ("receiver manifest", "/receiver/manifest", plan.receiver.manifest, digests.receiver),
        ("policy", "/policy", plan.policy, digests.policy),
        ("placement", "/placement", plan.placement, digests.placement),
        ("options", "/options", plan.options, digests.options),
    ):
        if stated != true:
            yield refuse(
                "TS600",
                f"the plan was not made from this {name}",
                at(pointer),
                expected=true or f"no {name}",
                found=stated or f"no {name}",
                help_text="compile the plan again, or give the inputs that it was compiled from",
            )


def _repeated(manifest: Manifest, side: PlanSide, name: Side) -> Iterator[Diagnostic]:
    for field in ("world_size", "axes", "tables"):
        stated, true = getattr(side, field), getattr(manifest, field)
        if stated != true:
            yield refuse(
                "TS601",
                f"the plan's {field} of the {name} are not the manifest's",
                at(f"/{name}/{field}"),
                expected=true,
                found=stated,
            )


def _whole(manifest: Manifest, name: Side) -> Iterator[Diagnostic]:
    if manifest.side is not name:
        yield refuse("TS606", f"the {name}'s manifest is a {manifest.side}'s", at(f"/{name}"))
    ranks = indexset.parse(manifest.ranks) if manifest.ranks else range(manifest.world_size)
    if tuple(ranks) != tuple(range(manifest.world_size)):
        yield refuse(
            "TS606",
            f"the {name}'s manifest does not speak for all of its ranks",
            at(f"/{name}"),
            expected=f"ranks 0..{manifest.world_size - 1}",
            found=f"ranks {manifest.ranks}",
        )


def _once(evidence: Evidence) -> Iterator[Diagnostic]:
    """TS606: buffers that a rank declares more than once."""
    for known in (evidence.sender, evidence.receiver):
        count = Counter((buffer.rank, buffer.name) for buffer in known.buffers)
        for (rank, buffer), times in count.items():
            if times > 1:
                message = f"{known.side} rank {rank} declares buffer '{buffer}' {times} times"
                yield refuse("TS606", message, at(f"/{known.side}"), expected=1, found=times)


def _names(case: Case) -> Iterator[Diagnostic]:
    """TS602: rounds and turns without a value, and names of unused tensors that do not parse."""
    known = {found.at for evidence in case.units for found in evidence.readings.unreadable}
    yield from (found for found in case.counted.unreadable if found.at not in known)
    for number, unused in enumerate(case.plan.unused):
        try:
            parse_template(unused.tensor)
        except TemplateError as error:
            place = f"/unused/{number}"
            yield refuse("TS602", f"{place} cannot be read: {error}", at(place))


def _seats(case: Case) -> Iterator[Diagnostic]:
    placement, stated = case.placement, case.plan.seats
    true = Seats(sender=placement.sender, receiver=placement.receiver) if placement else None
    nearest = any(edge.nearest for edge in case.plan.edges)
    if stated != true and (stated is not None or nearest):
        yield refuse(
            "TS601", "the plan's seats are not the placement's", at("/seats"), true, stated
        )
    if nearest and true is None:
        number = next(n for n, edge in enumerate(case.plan.edges) if edge.nearest)
        message = f"edge {number} chooses the nearest holder without a placement"
        yield refuse("TS601", message, at(f"/edges/{number}/nearest"))

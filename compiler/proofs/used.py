"""Proof 4: every sender tensor is used, or the policy excuses it.

Axioms: the tensors that the sender's transfer buffers hold, and the policy.

- A tensor is used if a move reads a piece of it. One that is tied to a used tensor is used with it.
- A family with a tensor left must be matched by a line of the policy, by its name as the sender's
  manifest writes it, and the plan must list it with that line's reason.
- The plan lists nothing else: what it lists is a family of the sender's with a tensor that no move
  reads, and the policy excuses it. So a plan cannot excuse itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tranship.compiler.proofs.declared import distinct
from tranship.compiler.proofs.evidence import Case, Evidence
from tranship.compiler.proofs.families import Texts, families, matches, spellings
from tranship.compiler.proofs.report import at, refuse, some
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.plan import UnusedTensor
from tranship.schema.template import parse_template


def prove_used(case: Case) -> Iterator[Diagnostic]:
    """Yield TS630 to TS632."""
    left: dict[Texts, _Left] = {}
    for evidence in case.units:
        left |= _left(evidence)
    listed: set[Texts] = set()
    for number, unused in enumerate(case.plan.unused):
        texts = parse_template(unused.tensor).texts
        if texts in listed:
            message = f"'{unused.tensor}' is listed as unused twice"
            yield refuse("TS632", message, at(f"/unused/{number}"))
        listed.add(texts)
        yield from _excused(case, left.get(texts), number, unused)
    for texts, family in left.items():
        if family.required and texts not in listed:
            message = f"no edge uses {some(family.required)} of the sender"
            help_text = "let the receiver take it, or excuse it in the policy and compile again"
            yield refuse("TS630", message, at("/unused"), help_text=help_text)


@dataclass(frozen=True)
class _Left:
    """A family of which no move reads some tensors: `required` ones, and ones tied to used ones.

    `spellings` are the family's names as the manifest writes them, in families and in pieces.
    """

    spellings: tuple[str, ...]
    required: tuple[str, ...]


def _left(evidence: Evidence) -> dict[Texts, _Left]:
    """The sender's families with tensors that no move reads."""
    sender, manifest = evidence.sender, evidence.sender_manifest
    used = {
        number
        for reading in evidence.readings.edges
        for number in distinct(reading.sender.tensor[reading.sender_row])
    }
    classes = {sender.class_of(sender.tensors[number].name) for number in used}
    idle = {sender.tensors[n].name for n in distinct(sender.values.tensor) if n not in used}
    left: dict[Texts, _Left] = {}
    for name, texts in families(manifest, idle).items():
        before = left.get(texts) or _Left(spellings(manifest, texts), ())
        needed = () if sender.class_of(name) in classes else (name,)
        left[texts] = _Left(before.spellings, (*before.required, *needed))
    return left


def _excused(
    case: Case, left: _Left | None, number: int, unused: UnusedTensor
) -> Iterator[Diagnostic]:
    """TS631 and TS632: a line of the plan that the policy or the moves do not bear out."""
    place = at(f"/unused/{number}")
    if left is None:
        message = f"'{unused.tensor}' is listed as unused, and no tensor of the sender's is"
        yield refuse("TS632", message, place)
        return
    lines = case.policy.unused if case.policy else ()
    reasons = [
        line.reason for line in lines if any(matches(name, line.tensors) for name in left.spellings)
    ]
    if unused.reason not in reasons:
        message = f"the policy does not excuse '{unused.tensor}' for this reason"
        yield refuse("TS631", message, place, reasons[0] if reasons else "no line", unused.reason)

"""The verifier's answer: which of the proofs hold, and its findings at lines of the plan's file."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum

from rich.text import Text

from tranship.cli.layout import BAD, GOOD, QUIET, count, flow
from tranship.cli.load import Loaded
from tranship.compiler.verify import PLAN, PROOFS, verify
from tranship.schema.canonical import Json
from tranship.schema.codec import Source
from tranship.schema.diagnostics import Diagnostic, Location
from tranship.schema.plan import TransferPlan

PROOF_TEXTS = (
    "the plan was made from these inputs, and its edges refer to declared pieces",
    "every element of every buffer is written exactly once, with the right value",
    "every derived buffer is recomputed after its inputs",
    "every sender tensor is used, or excused with a reason",
    "the policy allows every edge, and encodings, grids and layouts fit",
    "sends and receives pair up, and the rounds have one order without a cycle",
    "staging memory stays within its budget and is never used twice at a time",
    "no rank reads what a round has already overwritten",
)
"""What each of the verifier's proofs shows, in its order."""

_TRUNCATED = "TS699"


class Verdict(StrEnum):
    """What became of a proof."""

    PROVED = "proved"
    REFUTED = "refuted"
    NOT_TRIED = "not tried"


def findings(plan: TransferPlan, loaded: Loaded, source: Source) -> tuple[Diagnostic, ...]:
    """Verify `plan`, whose text is `source`, against the inputs that were loaded."""
    inputs = loaded.inputs
    found = verify(
        plan,
        inputs.sender,
        inputs.receiver,
        inputs.policy,
        inputs.placement,
        digests=loaded.digests,
        options=inputs.options,
    )
    return tuple(_placed(one, source) for one in found)


def _placed(diagnostic: Diagnostic, source: Source) -> Diagnostic:
    labels = tuple(replace(label, at=_at(label.at, source)) for label in diagnostic.labels)
    return replace(diagnostic, at=diagnostic.at and _at(diagnostic.at, source), labels=labels)


def _at(at: Location, source: Source) -> Location:
    return source.locate(at.pointer) if at.file == PLAN else at


def verdicts(found: Sequence[Diagnostic]) -> tuple[Verdict, ...]:
    """Tell from the findings what became of every proof.

    The tens of a code TS6nn number the proof. The others need the first one, and none is tried
    once there are more findings than are reported.
    """
    refuted = {int(one.code[3]) for one in found if one.code.startswith("TS6")} - {9}
    truncated = any(one.code == _TRUNCATED for one in found)
    last = 0 if 0 in refuted else max(refuted) if truncated else len(PROOFS)
    return tuple(
        Verdict.REFUTED
        if number in refuted
        else Verdict.PROVED
        if number <= last
        else Verdict.NOT_TRIED
        for number in range(len(PROOFS))
    )


def proof_lines(found: Sequence[Diagnostic], width: int, tick: str) -> Iterator[Text]:
    """Write one line for every proof."""
    for number, (verdict, text) in enumerate(zip(verdicts(found), PROOF_TEXTS, strict=True)):
        own = sum(one.code[:4] == f"TS6{number}" for one in found)
        mark, note = {
            Verdict.PROVED: ((tick, GOOD), ""),
            Verdict.REFUTED: (("x", BAD), count(own, "finding")),
            Verdict.NOT_TRIED: (("-", QUIET), "not tried"),
        }[verdict]
        yield from flow("", [mark, f"{number + 1}  {text}", note], width, 2)


def proof_members(found: Sequence[Diagnostic]) -> list[Json]:
    """Write what became of every proof for programs."""
    pairs = zip(verdicts(found), PROOF_TEXTS, strict=True)
    return [
        {"proof": number, "text": text, "verdict": verdict.value}
        for number, (verdict, text) in enumerate(pairs, start=1)
    ]

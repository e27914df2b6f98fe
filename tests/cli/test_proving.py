"""Findings tell what became of every proof."""

import pytest

from tranship.cli.proving import PROOF_TEXTS, Verdict, verdicts
from tranship.compiler.verify import PROOFS
from tranship.schema.diagnostics import Diagnostic

P, X, N = Verdict.PROVED, Verdict.REFUTED, Verdict.NOT_TRIED


def test_every_proof_of_the_verifier_has_a_text() -> None:
    assert len(PROOF_TEXTS) == len(PROOFS)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], [P, P, P, P, P, P, P, P]),
        (["TS600"], [X, N, N, N, N, N, N, N]),
        (["TS601", "TS699"], [X, N, N, N, N, N, N, N]),
        (["TS613", "TS640", "TS641"], [P, X, P, P, X, P, P, P]),
        (["TS670"], [P, P, P, P, P, P, P, X]),
        (["TS613", "TS623", "TS699"], [P, X, X, N, N, N, N, N]),
    ],
)
def test_verdicts_follow_from_the_codes(codes: list[str], expected: list[Verdict]) -> None:
    assert list(verdicts([Diagnostic(code, "") for code in codes])) == expected

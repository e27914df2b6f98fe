"""What people read, as it is printed where there is no terminal."""

import re
from pathlib import Path

import pytest

from tests.cli.golden import assert_golden
from tests.cli.outcome import Outcome, run

TRANSFER, PLAN = "small.transfer.toml", "small.plan.json"

PAGES = {
    "compile": ["compile", TRANSFER],
    "compile-check": ["compile", TRANSFER, "--check"],
    "verify": ["verify", TRANSFER],
    "check": ["check", "trainer.manifest.json", "policy.json", "missing.json"],
    "show-plan": ["show", PLAN],
    "show-plan-rank": ["show", PLAN, "--rank", "1"],
    "show-manifest": ["show", "engine.manifest.json"],
    "show-manifest-rank": ["show", "engine.manifest.json", "--rank", "1"],
    "schema": ["schema"],
}


def page(outcome: Outcome) -> str:
    out = re.sub(r"in \d+\.\d s", "in 0.1 s", outcome.out)
    return f"{out}--- stderr\n{outcome.err}--- status {int(outcome.status)}\n"


@pytest.mark.parametrize("name", PAGES)
def test_page_is_as_committed(compiled: Path, name: str) -> None:
    assert_golden(f"cli/{name}.txt", page(run(*PAGES[name])))


def test_page_of_findings_is_as_committed(compiled: Path) -> None:
    plan = compiled / PLAN
    plan.write_text(plan.read_text().replace('"offset": 32768', '"offset": 32512'))
    assert_golden("cli/verify-findings.txt", page(run("verify", TRANSFER)))


def test_page_of_wrong_inputs_is_as_committed(folder: Path) -> None:
    policy = folder / "policy.json"
    policy.write_text(policy.read_text().replace('"allow"', '"allows"'))
    assert_golden("cli/compile-findings.txt", page(run("compile", TRANSFER)))


@pytest.mark.parametrize("name", ["show-plan", "show-manifest", "show-plan-rank"])
def test_page_fits_a_hundred_columns_and_is_ascii(compiled: Path, name: str) -> None:
    text = run(*PAGES[name]).out
    assert text.isascii()
    assert max(len(line) for line in text.splitlines()) <= 100

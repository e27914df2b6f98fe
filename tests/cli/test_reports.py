"""Findings for services that run checks: annotations, code scanning, comments; and strictness."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.golden import assert_golden
from tests.cli.outcome import run
from tranship.cli.github import workflow_commands
from tranship.cli.markdown import code_span
from tranship.cli.repository import repository_path
from tranship.cli.sarif import sarif
from tranship.schema.diagnostics import Diagnostic, Location, explanation, known_codes

TRANSFER, PLAN = "small.transfer.toml", "small.plan.json"
ROOT = Path(__file__).parents[2]

TEXT: dict[str, Any] = {
    "type": "object",
    "required": ["text"],
    "properties": {"text": {"type": "string", "minLength": 1}, "markdown": {"type": "string"}},
    "additionalProperties": False,
}
LOCATION: dict[str, Any] = {
    "type": "object",
    "required": ["physicalLocation"],
    "properties": {
        "message": TEXT,
        "logicalLocations": {
            "type": "array",
            "items": {"properties": {"fullyQualifiedName": {"type": "string"}}},
        },
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation"],
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "required": ["uri"],
                    "properties": {
                        "uri": {"type": "string", "pattern": r"^[A-Za-z0-9._~%/-]+$"},
                        "uriBaseId": {"const": "%SRCROOT%"},
                    },
                    "additionalProperties": False,
                },
                "region": {
                    "type": "object",
                    "required": ["startLine"],
                    "properties": {
                        "startLine": {"type": "integer", "minimum": 1},
                        "startColumn": {"type": "integer", "minimum": 1},
                    },
                    "additionalProperties": False,
                },
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
RULE: dict[str, Any] = {
    "type": "object",
    "required": ["id", "shortDescription", "fullDescription", "help"],
    "properties": {
        "id": {"type": "string", "pattern": "^TS[0-9]{3}$"},
        "shortDescription": TEXT,
        "fullDescription": TEXT,
        "help": {**TEXT, "required": ["text", "markdown"]},
        "defaultConfiguration": {
            "properties": {"level": {"enum": ["none", "note", "warning", "error"]}}
        },
    },
    "additionalProperties": False,
}
RESULT: dict[str, Any] = {
    "type": "object",
    "required": ["ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"],
    "properties": {
        "ruleId": {"type": "string"},
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": {"enum": ["warning", "error"]},
        "message": TEXT,
        "locations": {"type": "array", "minItems": 1, "items": LOCATION},
        "relatedLocations": {"type": "array", "items": LOCATION},
        "partialFingerprints": {
            "type": "object",
            "required": ["primaryLocationLineHash"],
            "additionalProperties": {"type": "string"},
        },
    },
    "additionalProperties": False,
}
SARIF: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "required": ["name", "rules"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "semanticVersion": {"type": "string"},
                                    "rules": {"type": "array", "items": RULE},
                                },
                                "additionalProperties": False,
                            }
                        },
                    },
                    "results": {"type": "array", "items": RESULT},
                },
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}
"""What the SARIF 2.1.0 schema (OASIS) says of the parts that are used, and nothing besides them."""


@pytest.fixture
def wrong(compiled: Path) -> Path:
    """The example with a policy that has two mistakes, in a repository's folder."""
    (compiled / ".git").mkdir()
    policy = compiled / "policy.json"
    text = policy.read_text().replace('"cast"', '"copy"').replace('"f32"', '"f33"')
    policy.write_text(text)
    return compiled


@pytest.mark.parametrize("form", ["sarif", "github", "markdown"])
def test_formats_of_findings_are_as_committed(wrong: Path, form: str) -> None:
    outcome = run("check", "policy.json", "engine.manifest.json", "--format", form)
    assert (outcome.status, outcome.err) == (1, "")
    assert_golden(f"cli/check-{form}.txt", outcome.out)


@pytest.mark.parametrize(
    "command", [["check", "policy.json"], ["compile", TRANSFER], ["verify", TRANSFER]]
)
def test_every_verb_that_reports_writes_valid_sarif(wrong: Path, command: list[str]) -> None:
    log = json.loads(run(*command, "--format", "sarif").out)
    jsonschema.validate(log, SARIF)
    results = log["runs"][0]["results"]
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    assert len(results) == 2
    assert all(rules[one["ruleIndex"]]["id"] == one["ruleId"] for one in results)


def test_sarif_of_nothing_wrong_has_no_results(compiled: Path) -> None:
    log = json.loads(run("verify", TRANSFER, "--format", "sarif").out)
    jsonschema.validate(log, SARIF)
    assert log["runs"][0]["results"] == []


def test_every_code_makes_a_valid_rule() -> None:
    found = [Diagnostic(code, "m", Location("a b.json", "/x", 3, 4)) for code in known_codes()]
    log: Any = sarif(found)
    jsonschema.validate(log, SARIF)
    pages = [rule["help"]["markdown"] for rule in log["runs"][0]["tool"]["driver"]["rules"]]
    assert all(body in explanation(code) for code, body in zip(known_codes(), pages, strict=True))


def fingerprints(folder: Path) -> list[str]:
    log = json.loads(run("check", str(folder / "policy.json"), "--format", "sarif").out)
    results = log["runs"][0]["results"]
    return [one["partialFingerprints"]["primaryLocationLineHash"] for one in results]


def test_fingerprints_do_not_depend_on_lines(wrong: Path) -> None:
    before = fingerprints(wrong)
    policy = wrong / "policy.json"
    policy.write_text("\n\n" + policy.read_text())
    assert fingerprints(wrong) == before
    assert len(set(before)) == 2


def test_paths_are_those_of_the_repository(wrong: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (wrong / "deep").mkdir()
    monkeypatch.chdir(wrong / "deep")
    out = run("check", "../policy.json", "--format", "github").out
    assert "::error file=policy.json,line=5," in out
    assert repository_path("policy.json (not written)") == "deep/policy.json"
    assert repository_path("HEAD:policy.json") is None
    assert repository_path("/policy.json") is None


TEXTS = st.text(st.sampled_from("a:,%\r\n|`<>@\\\N{SNOWMAN}"), max_size=12)


@given(TEXTS, TEXTS)
def test_no_text_breaks_out_of_a_workflow_command(message: str, file: str) -> None:
    at = Location(file, "", 1, 2)
    (line,) = workflow_commands([Diagnostic("TS100", message, at)], [])
    assert not re.search(r"[\r\n]", line)
    head, _, data = line.removeprefix("::error ").partition("::")
    assert "%0A" not in message
    for escape, text in (("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        data = data.replace(escape, text)
    assert data == message
    names = [part.partition("=")[0] for part in head.split(",")]
    assert names in (["title"], ["file", "line", "col", "title"])


@given(TEXTS)
def test_no_text_breaks_out_of_a_code_span(text: str) -> None:
    span = code_span(text)
    fence = re.match("`+", span)
    assert fence
    inner = span[len(fence[0]) : -len(fence[0])]
    assert all(len(run_) != len(fence[0]) for run_ in re.findall("`+", inner))
    assert inner.strip() == " ".join(text.split())


def test_most_errors_are_as_many_as_are_asked_for(wrong: Path) -> None:
    every = json.loads(run("check", "policy.json", "--format", "json").out)["diagnostics"]
    assert len(every) == 2
    outcome = run("check", "policy.json", "--max-errors", "1", "--format", "json")
    first = json.loads(outcome.out)["diagnostics"]
    assert outcome.status == 1
    assert [one["code"] for one in first] == ["TS118", every[0]["code"]]
    assert "1 more error is not shown" in first[0]["message"]
    assert run("check", "policy.json", "--max-errors", "2").err == run("check", "policy.json").err


def with_idle_lines(folder: Path) -> None:
    """Give the policy an allowance and the transfer file an option that decide nothing."""
    policy = json.loads((folder / "policy.json").read_text())
    line = {**policy["allow"][0], "sender_dtype": "f16"}
    (folder / "policy.json").write_text(json.dumps({**policy, "allow": [*policy["allow"], line]}))


def test_allowance_that_nothing_needs_is_a_warning(compiled: Path) -> None:
    with_idle_lines(compiled)
    outcome = run("compile", TRANSFER)
    assert (outcome.status, "warning[TS720]" in outcome.err) == (0, True)
    assert "--> policy.json:1:" in outcome.err
    verified = run("verify", TRANSFER)
    assert (verified.status, "warning[TS720]" in verified.err) == (0, True)
    assert "TS720" not in run("compile", TRANSFER, "--format", "json", "-o", "x.json").err


@pytest.mark.parametrize("side", ["engine.manifest.json"])
def test_formula_that_nothing_is_quantized_by_is_a_warning(compiled: Path, side: str) -> None:
    manifest = (compiled / side).read_text()
    powers = manifest.replace('"scaled", ', '"scaled", "scale_values": "power_of_two", ')
    assert powers != manifest
    (compiled / side).write_text(powers)
    transfer = compiled / TRANSFER
    transfer.write_text(transfer.read_text() + 'formula = "reciprocal"\n')
    outcome = run("compile", TRANSFER)
    assert (outcome.status, "warning[TS721]" in outcome.err) == (0, True)
    assert "power_of_two" in outcome.err


def test_strictness_makes_errors_of_warnings_and_writes_nothing(compiled: Path) -> None:
    with_idle_lines(compiled)
    before = (compiled / PLAN).read_bytes()
    outcome = run("compile", TRANSFER, "-W", "error")
    assert (outcome.status, "error[TS720]" in outcome.err) == (1, True)
    assert (compiled / PLAN).read_bytes() == before
    run("compile", TRANSFER)
    assert run("verify", TRANSFER, "-W", "error").status == 1
    assert run("verify", TRANSFER).status == 0


def completions(*words: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_TRANSHIP_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": " ".join(words),
    }
    command = [sys.executable, "-m", "tranship"]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    ).stdout


def test_shells_complete_codes_and_paths(compiled: Path) -> None:
    (compiled / "notes.txt").write_text("")
    assert "TS203" in completions("tranship", "explain", "TS20")
    offered = completions("tranship", "show", "")
    assert "engine.manifest.json" in offered
    assert "notes.txt" not in offered

"""What scripts and other repositories depend on, frozen: verbs, flags, statuses and codes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from tests.cli.golden import assert_golden
from tranship.cli.app import app
from tranship.cli.output import Answer, Format, ReportFormat, Status, exit_status
from tranship.schema.diagnostics import Diagnostic, Severity, known_codes, title

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"\bTS\d{3}\b")


def parameters(command: Any) -> Iterator[str]:
    for parameter in command.params:
        names = sorted([*parameter.opts, *parameter.secondary_opts])
        if any(name.endswith("-completion") for name in names):
            continue  # what they take depends on the shell that is found
        is_option = names[0].startswith("-")
        kind = "flag" if getattr(parameter, "is_flag", False) else parameter.metavar or "value"
        needed = " required" if parameter.required else ""
        yield f"  {' '.join(names) if is_option else 'argument'}  {kind}{needed}"


def test_verbs_and_flags_are_frozen() -> None:
    root: Any = typer.main.get_command(app)
    lines = ["tranship", *parameters(root)]
    for name, command in sorted(root.commands.items()):
        lines += [name, *parameters(command)]
    assert_golden("cli/surface.txt", "\n".join(lines) + "\n")


def test_statuses_and_formats_are_frozen() -> None:
    assert {status.name: status.value for status in Status} == {
        "OK": 0,
        "FINDINGS": 1,
        "FAILED": 2,
        "DIFFERENT": 3,
        "INTERRUPTED": 130,
    }
    assert [form.value for form in Format] == ["human", "json"]
    reports = ["human", "json", "sarif", "github", "markdown"]
    assert [form.value for form in ReportFormat] == reports


def status_of(*codes: str, severity: Severity = Severity.ERROR) -> int:
    found = tuple(Diagnostic(code, "", severity=severity) for code in codes)
    return exit_status(Answer(diagnostics=found))


def test_codes_decide_the_exit_status() -> None:
    failures = {code for code in known_codes() if status_of(code) == 2}
    assert failures == {f"TS10{n}" for n in range(10)} | {c for c in known_codes() if c[2] == "9"}
    assert all(status_of(code) == 1 for code in known_codes() if code not in failures)
    assert status_of("TS201", "TS100") == 2
    assert status_of(*known_codes(), severity=Severity.WARNING) == 0


def sources() -> Iterator[Path]:
    for folder in (
        "schema",
        "compiler",
        "runtime",
        "tranship/cli",
        "tranship/demo",
        "tranship/models",
    ):
        yield from (ROOT / folder).rglob("*.py")


def test_every_code_that_is_used_has_a_page_and_every_page_a_use() -> None:
    used = {code for path in sources() for code in CODE.findall(path.read_text(encoding="utf-8"))}
    assert used == set(known_codes())


def test_codes_are_frozen() -> None:
    lines = [f"{code}  {title(code)}\n" for code in known_codes()]
    assert_golden("codes.txt", "".join(lines))

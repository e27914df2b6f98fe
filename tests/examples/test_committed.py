"""What stands in `examples/` is what the commands there write, and what they print.

Set TRANSHIP_UPDATE_GOLDEN=1 to write what commands print into the pages instead.
"""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.outcome import contents, run
from tests.examples.catalog import EXAMPLES, SCRIPTS, TRANSFERS, commands, name_of, plan_file

MANIFEST_BYTES = 300_000
PLAN_BYTES = 1_000_000

PAGES = [EXAMPLES.parent / "README.md", *(script.with_name("README.md") for script in SCRIPTS)]

PRINTED = re.compile(r"^`tranship ([^`]+)`:\n\n```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A command in a page, and what it prints."""


@pytest.mark.parametrize("transfer", TRANSFERS, ids=name_of)
def test_committed_plan_is_current_and_proved(transfer: Path) -> None:
    assert run("compile", str(transfer), "--check").status == 0
    assert run("verify", str(transfer)).status == 0
    assert plan_file(transfer).stat().st_size <= PLAN_BYTES


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_commands_write_the_committed_manifests(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(script.with_name("config.json"), tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = commands(script)
    for arguments in asked:
        assert arguments[0] == "compile" or run(*arguments).status == 0
    committed = contents(script.parent)
    manifests = {name for name in committed if name.endswith(".manifest.json")}
    assert contents(tmp_path) == {name: committed[name] for name in {"config.json", *manifests}}
    assert all(len(committed[name]) <= MANIFEST_BYTES for name in manifests)
    compiled = {arguments[1] for arguments in asked if arguments[0] == "compile"}
    assert compiled == {name for name in committed if name.endswith(".transfer.toml")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_page_has_the_commands(script: Path) -> None:
    page = script.with_name("README.md").read_text()
    body = script.read_text().partition('cd "$(dirname "$0")"\n\n')[2]
    assert body
    assert f"```\n{body}```\n" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name)
def test_page_shows_what_commands_print(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    text = page.read_text()
    printed = PRINTED.sub(_as_printed, text)
    assert PRINTED.search(text)
    if os.environ.get("TRANSHIP_UPDATE_GOLDEN"):
        page.write_text(printed)
    assert page.read_text() == printed


def _as_printed(block: re.Match[str]) -> str:
    outcome = run(*shlex.split(block[1]))
    assert outcome.status == 0
    return f"`tranship {block[1]}`:\n\n```\n{outcome.out}```"

"""The walk-through of a review shows what its commands print, on the committed example."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "review.md"
EXAMPLE = ROOT / "examples" / "qwen3-30b-a3b"
BLOCK = re.compile(r"```console\n\$ (?P<command>[^\n]*)\n(?P<output>.*?)```", re.DOTALL)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with the example, in which `git diff` shows plans in words."""
    folder = tmp_path / "repository"
    shutil.copytree(EXAMPLE, folder)
    (folder / ".gitattributes").write_text(
        "*.plan.json diff=tranship\n*.manifest.json diff=tranship\n"
    )
    for command in (
        ["init", "--quiet"],
        ["config", "diff.tranship.textconv", "tranship show"],
        ["config", "user.name", "A"],
        ["config", "user.email", "a@example.org"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "before"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    """The environment in which `tranship` is the code under test."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "tranship").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tranship "$@"\n')
    (tools / "tranship").chmod(0o755)
    paths = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **paths, "COLUMNS": "110", "NO_COLOR": "1", "GIT_PAGER": "cat"}


def test_the_page_shows_what_its_commands_print(
    repository: Path, environment: Mapping[str, str]
) -> None:
    page = PAGE.read_text()

    def run(block: re.Match[str]) -> str:
        command = block["command"]
        printed = subprocess.run(
            ["bash", "-c", command],
            cwd=repository,
            env=dict(environment),
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        lines = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
        return f"```console\n$ {command}\n{lines}```"

    written = BLOCK.sub(run, page)
    assert written.count("```console") == 9
    if os.environ.get("TRANSHIP_UPDATE_GOLDEN"):
        PAGE.write_text(written)
        return
    assert page == written

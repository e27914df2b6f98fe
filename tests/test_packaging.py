"""The package is what the repository's files say it is."""

import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import tranship

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("folder", ["schema", "compiler", "runtime"])
def test_link_resolves_to_the_top_level_folder(folder: str) -> None:
    link = ROOT / "tranship" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder
    assert (link / "__init__.py").is_file()


def test_package_version_is_the_version_in_its_metadata() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert tranship.__version__ == metadata["project"]["version"]


def test_package_is_marked_as_typed() -> None:
    assert (files("tranship") / "py.typed").is_file()


@pytest.mark.parametrize(("target", "runs"), [("demo", "tranship demo"), ("test", "pytest")])
def test_makefile_has_the_command_of_the_readme(target: str, runs: str) -> None:
    command = ["make", "--no-print-directory", "--dry-run", "--directory", str(ROOT), target]
    recipe = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"/{runs}" in recipe.splitlines()[-1]

"""Manifests of single ranks become that of the side."""

from pathlib import Path

import pytest

from tests.cli.example import engine, trainer
from tests.cli.outcome import contents, run
from tranship.schema.codec import dump, load
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest


def write_ranks(folder: Path, manifest: Manifest) -> list[str]:
    """Write what every rank would have written about itself."""
    names: list[str] = []
    for rank in range(manifest.world_size):
        names.append(f"rank{rank}.json")
        (folder / names[-1]).write_bytes(dump(fold(expand(manifest, [rank]))))
    return names


@pytest.mark.parametrize("manifest", [trainer(), engine()])
def test_merged_manifest_says_what_the_whole_one_says(tmp_path: Path, manifest: Manifest) -> None:
    names = [str(tmp_path / name) for name in write_ranks(tmp_path, manifest)]
    outcome = run("merge", *reversed(names), "-o", str(tmp_path / "all.json"))
    assert (outcome.status, outcome.err) == (0, "")
    merged = load(tmp_path / "all.json", Manifest).value
    assert expand(merged) == expand(manifest)


def test_merge_writes_nothing_if_a_rank_is_missing_or_twice(folder: Path) -> None:
    first, second = write_ranks(folder, trainer())
    before = contents(folder)
    missing = run("merge", first, "-o", "all.json")
    assert (missing.status, "error[TS145]" in missing.err) == (1, True)
    assert "rank0.json:" in missing.err
    twice = run("merge", first, second, first, "-o", "all.json")
    assert (twice.status, "error[TS144]" in twice.err) == (1, True)
    assert contents(folder) == before


def test_merge_does_not_replace_its_inputs(folder: Path) -> None:
    names = write_ranks(folder, trainer())
    before = contents(folder)
    outcome = run("merge", *names, "-o", names[0])
    assert (outcome.status, "error[TS107]" in outcome.err) == (2, True)
    assert contents(folder) == before


def test_merge_needs_a_place_for_its_result(folder: Path) -> None:
    names = write_ranks(folder, trainer())
    assert run("merge", *names).status == 2
    assert run("merge", *names, "-o", "no/such/folder.json").status == 2

"""Sessions between processes: two senders and two receivers, joined by gloo."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.runtime import gloo_ranks
from tests.runtime.gloo_ranks import VICTIM, WORLD

LIMIT = 120
"""Seconds after which processes that hang are ended; they take a few."""

Reports = dict[str, list[list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What every member reported of every step of every scenario; a dead one reports nothing."""
    folder = tmp_path_factory.mktemp("gloo")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([gloo_ranks.__name__])
    ranks = [
        context.Process(target=gloo_ranks.main, args=(member, store.port, str(folder)))
        for member in range(WORLD.size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(LIMIT)
        rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0, 0, 17]
    names = [scenario.__name__ for scenario in gloo_ranks.SCENARIOS]
    return {name: [_read(folder, name, member) for member in range(WORLD.size)] for name in names}


def _read(folder: Path, name: str, member: int) -> list[dict[str, Any]]:
    path = folder / f"{name}-{member}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def of_step(reports: Reports, scenario: str, step: int) -> list[dict[str, Any]]:
    """Reports of one step by all members that are left."""
    return [steps[step] for steps in reports[scenario] if steps]


def whole(found: list[dict[str, Any]], version: int) -> None:
    """All ranks have committed, with equal digests, and receivers hold the oracle's bytes."""
    assert {report["committed"] for report in found} == {version}
    assert len({report["digest"] for report in found}) == 1
    assert [report["wrong"] for report in found if "wrong" in report] == [[], []]


@pytest.mark.parametrize(("scenario", "versions"), [("copies", (1, 2, 5)), ("quantizes", (1, 2))])
def test_every_version_arrives_whole(
    reports: Reports, scenario: str, versions: tuple[int, ...]
) -> None:
    for step, version in enumerate(versions):
        whole(of_step(reports, scenario, step), version)


def test_the_groups_of_a_trainer_are_left_alone(reports: Reports) -> None:
    assert [report.get("trainer") for report in of_step(reports, "copies", 2)] == [2, 2, None, None]


@pytest.mark.parametrize(
    ("step", "code", "state"), [(1, "TS832", "committed"), (2, "TS830", "empty")]
)
def test_ranks_that_disagree_do_not_begin(
    reports: Reports, step: int, code: str, state: str
) -> None:
    whole(of_step(reports, "disagrees", 0), 1)
    found = of_step(reports, "disagrees", step)
    assert len({report["error"] for report in found}) == 1
    assert f"receiver rank 1: {code}: " in found[0]["error"]
    assert [report["state"] for report in found[2:]] == [state] * 2


def test_corruption_tears_all_receivers_until_the_next_update(reports: Reports) -> None:
    whole(of_step(reports, "corrupts", 0), 1)
    found = of_step(reports, "corrupts", 1)
    assert len({report["error"] for report in found}) == 1
    assert "receiver rank 1: TS839: in round 0, what sender rank 0 sent" in found[0]["error"]
    assert [report["state"] for report in found[2:]] == ["torn"] * 2
    assert {report["committed"] for report in found} == {1}
    whole(of_step(reports, "corrupts", 2), 3)


def test_declared_shards_are_the_parts_of_full_tensors(reports: Reports) -> None:
    one_axis = [steps[0] for steps in reports["shards"][:3]]
    two_axes = [steps[-1] for steps in reports["shards"]]
    assert [found["weight"] for found in one_axis] == [[True, [n, 6]] for n in (4, 4, 2)]
    assert [found["weight"] for found in two_axes] == [[True, [n, 6]] for n in (3, 3, 2, 2)]
    assert [found["bias"] for found in two_axes] == [[True, [n]] for n in (3, 3, 2, 2)]


def test_a_rank_that_dies_is_reported_by_all_others(reports: Reports) -> None:
    assert reports["dies"][VICTIM] == []
    found = of_step(reports, "dies", 0)
    assert len(found) == 3
    assert len({report["error"] for report in found}) == 1
    assert "receiver rank 1: TS836: receiver rank 1 was not heard of" in found[0]["error"]
    assert found[2]["state"] == "torn"
    assert {report["committed"] for report in found} == {None}

"""Sessions between processes on GPUs: four that share one, and two that have one each."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.runtime import cuda_ranks
from tests.runtime.cuda_ranks import CHECKED, UPDATES, WAYS

LIMIT = 400
"""Seconds after which processes that hang are ended."""

Reports = dict[str, list[list[dict[str, Any]]]]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")


def ways(scenario: str) -> pytest.MarkDecorator:
    """All ways of joining ranks in which a scenario is run."""
    chosen = [way for way, run in cuda_ranks.SCENARIOS.items() if scenario in map(_name, run)]
    return pytest.mark.parametrize("reports", [_marked(way) for way in chosen], indirect=True)


def _name(scenario: cuda_ranks.Scenario) -> str:
    return scenario.__name__


def _marked(way: str) -> Any:
    marks = [pytest.mark.gpu] if WAYS[way].gpus == 1 else [pytest.mark.multigpu, two]
    return pytest.param(way, marks=marks)


@pytest.fixture
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What every member reported of every step of every scenario; a way's are run once."""
    way: str = request.param
    if way not in _RUN:
        _RUN[way] = _run(way, tmp_path_factory.mktemp(way))
    return _RUN[way]


_RUN: dict[str, Reports] = {}


def _run(way: str, folder: Path) -> Reports:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    size = 2 * WAYS[way].parts
    ranks = [
        context.Process(target=cuda_ranks.main, args=(way, member, store.port, str(folder)))
        for member in range(size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(LIMIT)
        rank.kill()
    found: Reports = {}
    for scenario in cuda_ranks.SCENARIOS[way]:
        paths = [folder / f"{scenario.__name__}-{member}.json" for member in range(size)]
        found[scenario.__name__] = [
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else [] for path in paths
        ]
    return found


def of_step(reports: Reports, scenario: str, step: int) -> list[dict[str, Any]]:
    """What all members reported of a step; whatever was raised at binding, of every step."""
    assert all(reports[scenario]), "a process ended early"
    found = [steps[min(step, len(steps) - 1)] for steps in reports[scenario]]
    assert not [report["raised"] for report in found if "raised" in report]
    return found


def whole(found: list[dict[str, Any]], version: int) -> None:
    """All ranks have committed, with equal digests, and receivers hold the oracle's bytes."""
    assert not [report["error"] for report in found if "error" in report]
    assert {report["committed"] for report in found} == {version}
    assert len({report["digest"] for report in found}) == 1
    assert not any(report.get("wrong") for report in found)


@ways("copies")
@pytest.mark.parametrize(("scenario", "versions"), [("copies", (1, 2, 5)), ("quantizes", (1, 2))])
def test_every_version_arrives_whole(
    reports: Reports, scenario: str, versions: tuple[int, ...]
) -> None:
    for step, version in enumerate(versions):
        found = of_step(reports, scenario, step)
        whole(found, version)
        assert any("wrong" in report for report in found)


@ways("repeats")
def test_a_thousand_updates_arrive_whole_in_the_same_memory(reports: Reports) -> None:
    compared = 0
    for version in range(UPDATES):
        found = of_step(reports, "repeats", version)
        whole(found, version)
        compared += any("wrong" in report for report in found)
    assert compared == UPDATES // CHECKED
    for steps in reports["repeats"]:
        assert len({tuple(report["memory"]) for report in steps[3:]}) == 1


WAITING = ("channel.py", "together.py", "streams.py")
"""Files whose functions are called as often as a rank has time to look whether others are done."""

WATCHING = ("watch.py", "cuda_calls.py", "__init__.py:string_at")
"""Files whose functions are called once per allocation of the driver, not per tensor."""


LAUNCHES = {"graphs.py:_each": 1, "graphs.py:_replay": 1, "graphs.py:replay": 0}
"""What runs a group of launches, and how it counts: an empty group is run, not replayed."""


def _steady(calls: dict[str, int]) -> dict[str, int]:
    left = {name: n for name, n in calls.items() if not name.startswith(WAITING + WATCHING)}
    launches = sum(left.pop(name, 0) * weight for name, weight in LAUNCHES.items())
    return left | {"launches": launches}


@ways("counts")
def test_a_steady_step_allocates_nothing_and_calls_as_much_for_many_tensors_as_for_few(
    reports: Reports,
) -> None:
    for found in reports["counts"]:
        assert not [report["raised"] for report in found if "raised" in report]
        few, many = found
        assert many["tensors"] > 5 * few["tensors"]
        assert many["rounds"] == few["rounds"]
        assert few["allocations"] == many["allocations"] == 0
        assert _steady(few["calls"]) == _steady(many["calls"])


@ways("reallocates")
def test_memory_that_was_replaced_is_noticed_and_not_served(reports: Reports) -> None:
    whole(of_step(reports, "reallocates", 0), 1)
    for report in of_step(reports, "reallocates", 1):
        assert "TS810" in report["error"]
        assert report["committed"] == 1
        assert report.get("state", "torn") == "torn"

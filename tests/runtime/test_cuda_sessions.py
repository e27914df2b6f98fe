"""Sessions between processes on GPUs: four that share one, and two that have one each."""

import json
import multiprocessing
from typing import Any

import pytest
import torch
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.runtime import cuda_ranks
from tests.runtime.cuda_ranks import CHECKED, PARTS, UPDATES

LIMIT = 400
"""Seconds after which processes that hang are ended."""

Reports = dict[str, list[list[dict[str, Any]]]]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
WAYS = [
    pytest.param("cuda_ipc", marks=pytest.mark.gpu),
    pytest.param("nccl", marks=[pytest.mark.multigpu, two]),
    pytest.param("peers", marks=[pytest.mark.multigpu, two]),
]
every_way = pytest.mark.parametrize("reports", WAYS, indirect=True)


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What every member reported of every step of every scenario."""
    way: str = request.param
    folder = tmp_path_factory.mktemp(way)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    size = 2 * PARTS[way]
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


@every_way
@pytest.mark.parametrize(("scenario", "versions"), [("copies", (1, 2, 5)), ("quantizes", (1, 2))])
def test_every_version_arrives_whole(
    reports: Reports, scenario: str, versions: tuple[int, ...]
) -> None:
    for step, version in enumerate(versions):
        found = of_step(reports, scenario, step)
        whole(found, version)
        assert any("wrong" in report for report in found)


@pytest.mark.parametrize("reports", WAYS[:2], indirect=True)
def test_a_thousand_updates_arrive_whole_in_the_same_memory(reports: Reports) -> None:
    compared = 0
    for version in range(UPDATES):
        found = of_step(reports, "repeats", version)
        whole(found, version)
        compared += any("wrong" in report for report in found)
    assert compared == UPDATES // CHECKED
    for steps in reports["repeats"]:
        assert len({tuple(report["memory"]) for report in steps[3:]}) == 1


@pytest.mark.parametrize("reports", WAYS[:1], indirect=True)
def test_memory_that_was_replaced_is_noticed_and_not_served(reports: Reports) -> None:
    whole(of_step(reports, "reallocates", 0), 1)
    for report in of_step(reports, "reallocates", 1):
        assert "TS810" in report["error"]
        assert report["committed"] == 1
        assert report.get("state", "torn") == "torn"

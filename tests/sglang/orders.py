"""Orders to an engine's ranks, and what came of them."""

from pathlib import Path

from tests.sglang.engine_ranks import Report, Reports, Step
from tranship.runtime.frameworks.sglang.control import Bind, Close, Update, serialized


def step(order: Bind | Update | Close, **more: object) -> Step:
    """Order something in a session of its own."""
    return Step.model_validate({"payload": serialized(order, 1)[0], **more})


def update(version: int, expect: Path | None = None) -> Step:
    """Order a version, of which the checkpoint `expect` tells what must be held."""
    return step(Update(action="update", version=version), expect=expect)


def read_reports(folder: Path, count: int) -> list[list[Report]]:
    """Return what each rank has reported of its steps."""
    found: list[list[Report]] = []
    for number in range(count):
        reports = Reports.model_validate_json((folder / f"{number}.json").read_text())
        assert not reports.raised, reports.raised
        found.append(reports.steps)
    return found

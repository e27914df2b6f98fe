"""Trace engines of one architecture, and then be their ranks, as `engine_ranks.py` has them.

    python -m tests.sglang.traced_ranks REQUESTS < SCENARIO

A line is printed when all is traced. The scenario orders what depends on it, and is read then.
SGLang is imported once.
"""

import sys
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from tests.sglang.engine_ranks import Scenario, be_all, prepare_updates
from tranship.runtime.frameworks.sglang.trace import SGLANG
from tranship.runtime.frameworks.tracing.forks import run_forks
from tranship.runtime.frameworks.tracing.ranks import trace_rank
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.schema.codec import dump
from tranship.schema.fold import fold

TRACED = "all is traced\n"


class Requests(BaseModel):
    """Engines to trace; a rank's manifest is written as `RANK.json`."""

    requests: list[TraceRequest]


def trace(request: TraceRequest, rank: int) -> None:
    """Become a rank, and write what it declares."""
    declared = trace_rank(SGLANG, request, rank)
    (request.output / f"{rank}.json").write_bytes(dump(fold(declared)))


def main(path: str) -> None:
    """Trace, tell, and do what is ordered then."""
    requests = Requests.model_validate_json(Path(path).read_text(encoding="utf-8")).requests
    prepare_updates(requests[0].folder)
    if run_forks(partial(trace, request, rank) for request in requests for rank in request.ranks):
        sys.exit(1)
    # Engines may print lines of their own.
    sys.stdout.write(f"\n{TRACED}")
    sys.stdout.flush()
    be_all(Scenario.model_validate_json(sys.stdin.read()))


if __name__ == "__main__":
    main(sys.argv[1])

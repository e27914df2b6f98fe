"""Be every rank of some engines of one architecture: trace it, and load a checkpoint with it.

    python -m tests.sglang.ranks JOBS

SGLang is imported once; every rank is a fork.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from tests.sglang.load import load_rank, read_tensors, write_tensors
from tranship.runtime.frameworks.sglang.boot import Place, boot, build_model, prepare
from tranship.runtime.frameworks.sglang.trace import SGLANG
from tranship.runtime.frameworks.tracing.config import architecture_of
from tranship.runtime.frameworks.tracing.ranks import trace_model
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.schema.codec import dump
from tranship.schema.fold import fold


class Job(BaseModel):
    """One engine: what to trace, and the safetensors file that every rank is to load."""

    request: TraceRequest
    checkpoint: Path


class Jobs(BaseModel):
    """Engines of one architecture."""

    jobs: list[Job]


def be(job: Job, rank: int) -> None:
    """Write `RANK.json`, the manifest, and `RANK.safetensors`, what is held after loading."""
    request = job.request
    place = Place(request.tp, request.ep, rank)
    config: Any = boot(request.folder, place, request.arguments)
    declared = trace_model(SGLANG, build_model(config, "meta"), request, rank)
    (request.output / f"{rank}.json").write_bytes(dump(fold(declared)))
    held = load_rank(config, read_tensors(job.checkpoint))
    write_tensors(held, request.output / f"{rank}.safetensors")


def main(path: str) -> None:
    """Be all ranks, two at a time."""
    jobs = Jobs.model_validate_json(Path(path).read_text()).jobs
    prepare(architecture_of(jobs[0].request.folder))
    torch.set_num_threads(1)
    failed = 0
    running = 0
    for job in jobs:
        for rank in job.request.ranks:
            if running == 2:
                failed += os.wait()[1] != 0
                running -= 1
            if os.fork() == 0:
                status = 1
                try:
                    be(job, rank)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(status)
            running += 1
    for _ in range(running):
        failed += os.wait()[1] != 0
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1])

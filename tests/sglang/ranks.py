"""Be every rank of some engines of one architecture: trace it, and load a checkpoint with it.

    python -m tests.sglang.ranks JOBS

SGLang is imported once; every rank is a fork.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from tests.sglang.load import load_rank, read_tensors, write_tensors
from tranship.runtime.frameworks.sglang.boot import Place, boot, build_model, prepare
from tranship.runtime.frameworks.sglang.trace import SGLANG
from tranship.runtime.frameworks.tracing.config import architecture_of
from tranship.runtime.frameworks.tracing.forks import run_forks
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
    sys.exit(run_forks((partial(be, job, rank) for job in jobs for rank in job.request.ranks), 2))


if __name__ == "__main__":
    main(sys.argv[1])

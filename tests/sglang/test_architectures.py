"""Every architecture: traced, planned and delivered byte by byte as the engine's own code loads it.

One process is all ranks of an architecture's engines. What it traces is kept in golden files: an
engine that comes to hold its weights in another way shows as a difference there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cli.golden import assert_golden
from tests.models.configs import CONFIGS, FP8
from tests.runtime.trainings import merged, verified_plan
from tests.sglang.architectures import ARCHITECTURES, Config, Sources
from tests.sglang.configs import random_values, write_config
from tests.sglang.load import read_tensors, write_tensors
from tests.sglang.ranks import Job, Jobs
from tests.sglang.replay import bits
from tests.sglang.test_trace import pytestmark, run
from tests.sglang.test_transfer import blank
from tranship.models.produce import Request, produce
from tranship.runtime.execute import simulate
from tranship.runtime.frameworks.checkpoint import checkpoint_declaration
from tranship.runtime.frameworks.tracing.config import block_of, method_of
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.runtime.frameworks.tracing.sources import on_meta
from tranship.schema.codec import dump
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest

__all__ = ["pytestmark"]

RANKS = ((1, 1), (2, 1), (4, 1))
GROUPS = (*RANKS, (2, 2), (4, 2))

PLAIN = tuple((False, *ranks) for ranks in RANKS)
DENSE = (*((True, *ranks) for ranks in RANKS), *PLAIN)
EXPERTS_PLAIN = tuple((False, *ranks) for ranks in GROUPS)
EXPERTS = (*((True, *ranks) for ranks in GROUPS), *EXPERTS_PLAIN)

MATRIX = {
    "qwen3": DENSE,
    "qwen3_moe": EXPERTS,
    "glm4_moe": EXPERTS,
    "deepseek_v3": EXPERTS,
    "llama": PLAIN,
    "gemma3": DENSE,
    "mixtral": EXPERTS,
    "olmoe": EXPERTS,
    "minimax_m2": EXPERTS,
    "deepseek_v32": EXPERTS,
    "glm_moe_dsa": EXPERTS,
    "gpt_oss": PLAIN,
    "qwen3_5_moe": EXPERTS_PLAIN,
}
"""FP8 or not, ranks, and groups of experts.

Llama drops the scales of FP8, which is refused; it does not load gpt-oss for groups of experts.
"""


WIDER = {"qwen3_moe": {"moe_intermediate_size": 512}}
"""Sizes of which each of four ranks has whole blocks, without which SGLang refuses FP8."""


def _one_more(buffer: Tensor, weight: Tensor) -> None:
    buffer.copy_(weight).add_(1.0)


def _nothing(*_: Tensor) -> None:
    """Stand in for a method of a whole model, which is not there."""


RECIPES = {
    "GemmaRMSNorm.refresh_gemma_weight": _one_more,
    "DeepseekV2WeightLoaderMixin.post_load_weights": _nothing,
}


@dataclass(frozen=True)
class Case:
    """An engine, and the folder with its model's configuration."""

    name: str
    fp8: bool
    tp: int
    ep: int
    folder: Path

    @property
    def title(self) -> str:
        return f"{self.name}-{'fp8' if self.fp8 else 'bf16'}-tp{self.tp}-ep{self.ep}"

    def settings(self) -> tuple[Config, dict[str, int | bool | str]]:
        """Return what config.json has, and the engine's further arguments."""
        if (known := ARCHITECTURES.get(self.name)) is not None:
            return known.settings(fp8=self.fp8), dict(known.arguments)
        config = CONFIGS[self.name] | WIDER.get(self.name, {})
        return config | (FP8 if self.fp8 else {}), {}

    def sources(self) -> Sources:
        """Return dtype and shape of the checkpoint's tensors."""
        if (known := ARCHITECTURES.get(self.name)) is not None:
            return known.sources(fp8=self.fp8)
        config = str(self.folder / "config.json")
        checkpoint = produce(Request(self.name, config, "checkpoint", {}))
        return {b.name: (b.dtype, b.shape) for b in expand(checkpoint).buffers}

    def job(self) -> Job:
        """Write what the ranks need."""
        config, arguments = self.settings()
        write_config(config, self.folder)
        checkpoint = self.folder / "checkpoint.safetensors"
        write_tensors(random_values(on_meta(self.sources()), seed=self.tp), checkpoint)
        request = TraceRequest(
            folder=self.folder,
            tp=self.tp,
            ep=self.ep,
            ranks=tuple(range(self.tp)),
            arguments=arguments,
            sources=self.sources(),
            output=self.folder,
        )
        return Job(request=request, checkpoint=checkpoint)


def cases(name: str, folder: Path) -> Iterator[Case]:
    for fp8, tp, ep in MATRIX[name]:
        case = Case(name, fp8, tp, ep, folder / f"{fp8:d}-{tp}-{ep}")
        case.folder.mkdir()
        yield case


def delivered(
    sender: Manifest, receiver: Manifest, checkpoint: dict[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Compile, verify and carry out the transfer of a checkpoint; return what receivers hold."""
    plan = verified_plan(sender, receiver)
    held: dict[int, dict[str, Tensor]] = {rank: {} for rank in range(receiver.world_size)}
    for record in expand(receiver).buffers:
        if record.role.kind in ("transfer", "derived"):
            held[record.rank][record.name] = blank(record)
    simulate(plan, {0: checkpoint}, held, RECIPES)
    return held


def check_held(case: Case, receiver: Manifest, held: dict[int, dict[str, Tensor]]) -> None:
    """Compare every buffer with what the engine holds after its own `load_weights`."""
    theirs = [read_tensors(case.folder / f"{rank}.safetensors") for rank in range(case.tp)]
    seen: list[set[str]] = [set() for _ in theirs]
    for record in expand(receiver).buffers:
        seen[record.rank].add(record.name)
        found = theirs[record.rank][record.name]
        where = case.title, record.rank, record.name
        assert tuple(found.shape) == record.shape, where
        if record.role.kind == "transfer" or RECIPES.get(record.role.recipe) is _one_more:
            assert torch.equal(bits(held[record.rank][record.name]), bits(found)), where
        elif record.role.kind == "alias":
            of = theirs[record.rank][record.role.of]
            assert torch.equal(bits(found), bits(of)), where
    assert [set(loaded) for loaded in theirs] == seen, case.title


@pytest.mark.parametrize("name", sorted(MATRIX))
def test_every_engine_gets_what_its_own_code_loads(tmp_path: Path, name: str) -> None:
    engines = list(cases(name, tmp_path))
    jobs = tmp_path / "jobs.json"
    jobs.write_text(Jobs(jobs=[case.job() for case in engines]).model_dump_json())
    done = run("-m", "tests.sglang.ranks", jobs)
    assert done.returncode == 0, done.stderr
    for case in engines:
        receiver = merged(case.folder, case.tp)
        assert_golden(f"sglang/{case.title}.json", dump(receiver).decode())
        declared = checkpoint_declaration(
            case.sources(), method=method_of(case.folder), block=block_of(case.folder)
        )
        checkpoint = read_tensors(case.folder / "checkpoint.safetensors")
        check_held(case, receiver, delivered(fold(declared), receiver, checkpoint))

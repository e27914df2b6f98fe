"""Ranks of SGLang engines that are given orders by SGLang's own update sessions.

    python tests/sglang/engine_ranks.py SCENARIO

One process imports SGLang, and is forked for every rank, if there are several. Each writes down
what became of its orders. On a GPU a rank can also run its model, which must compute what a freshly
loaded one computes, bit for bit; so must a CUDA graph that was captured before the first order.
"""

import base64
import importlib
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import BaseModel

from tests.sglang import deepgemm, kernels
from tests.sglang.configs import write_config
from tests.sglang.forward import Captured, forward_pass, replace_attention
from tests.sglang.load import loaded_model, read_tensors
from tests.sglang.replay import bits
from tranship.runtime.frameworks.sglang.boot import (
    CPU,
    CUDA,
    Place,
    boot,
    build_model,
    device_of,
    prepare,
)
from tranship.runtime.frameworks.sglang.control import LOADER
from tranship.runtime.frameworks.tracing.config import architecture_of
from tranship.runtime.frameworks.tracing.forks import run_forks
from tranship.runtime.live import live_tensors


class Step(BaseModel):
    """One session of SGLang's, with one order in it.

    Attributes:
        payload: the order, serialized as for SGLang's HTTP server, in base64.
        load_format: what SGLang is asked to load it with.
        expect: a checkpoint; what the engine makes of it must then be what the model holds.
        second_names: whether names are given to modules first, as a forward pass of MLA does.
        packed: whether a scale is marked as packed for DeepGEMM first.
    """

    payload: str
    load_format: str = LOADER
    expect: Path | None = None
    second_names: bool = False
    packed: bool = False


class Job(BaseModel):
    """A rank, the checkpoint that it starts with, and what happens to it.

    Where `closes` is false, SGLang's sessions are not ended: it does so for FP8 on a CPU with AMX
    only. The scheduler calls loaders with gradients off, or in inference mode. A rank of several
    cannot compute, as nobody answers it; `computes` tells whether this one does.
    """

    config: dict[str, Any]
    tp: int = 1
    ep: int = 1
    rank: int = 0
    arguments: dict[str, Any] = {}
    checkpoint: Path | None = None
    closes: bool = True
    inference_mode: bool = False
    computes: bool = False
    deepgemm: bool = False
    steps: list[Step]


class Scenario(BaseModel):
    """Ranks of one architecture that are there at once; reports are written as `NUMBER.json`."""

    jobs: list[Job]
    output: Path


class Report(BaseModel):
    """What became of a step: an error, and which tensors and logits are not as they must be."""

    error: str = ""
    wrong: list[str] = []
    moved: list[str] = []
    logits: list[str] = []


class Reports(BaseModel):
    """One for each step."""

    steps: list[Report] = []
    raised: str = ""


class Engine:
    """One rank: a model as SGLang has it, and what SGLang updates it with."""

    def __init__(self, job: Job, folder: Path) -> None:
        write_config(job.config, folder)
        self.job, self.device = job, device_of(job.arguments)
        place = Place(job.tp, job.ep, job.rank)
        self.model_config = boot(folder, place, job.arguments)
        if job.checkpoint is None:
            self.model: Any = build_model(self.model_config, "meta")
        else:
            self.model = self._loaded(job.checkpoint)
        self.computes = Passes(self.model) if job.computes else None
        self.held = self._held()
        module = importlib.import_module(
            "sglang.srt.model_executor.model_runner_components.weight_updater"
        )
        self.updater = module.WeightUpdater(
            tp_rank=job.rank,
            device=self.device,
            gpu_id=0,
            model_config=self.model_config,
            custom_weight_loaders=[LOADER],
            get_model=lambda: self.model,
            update_model_fields=None,
            recapture_cuda_graph=None,
            get_model_runner=None,
        )

    def _loaded(self, checkpoint: Path) -> Any:
        """Build a model, and load a checkpoint with the engine's own code."""
        tensors = read_tensors(checkpoint)
        held = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        model = loaded_model(self.model_config, held, self.device)
        if self.device == CUDA or self.job.deepgemm:
            loader = importlib.import_module("sglang.srt.model_loader.loader")
            loader.DefaultModelLoader.postprocess_weights(model, torch.device(self.device))
        return model

    def _held(self) -> dict[str, tuple[int, int]]:
        """Where every tensor is, and which object the model holds of it."""
        found = live_tensors(self.model)
        return {name: (live.tensor.data_ptr(), id(live.read({}))) for name, live in found.items()}

    def run(self, step: Step) -> Report:
        """Update, and look at what it did."""
        if step.second_names:
            for layer in self.model.model.layers:
                layer.self_attn.attn_mha.kv_b_proj = layer.self_attn.kv_b_proj
            self.held = self._held()
        if step.packed:
            self.model.model.layers[0].self_attn.o_proj.weight_scale_inv.format_ue8m0 = True
        report = Report()
        mode = torch.inference_mode() if self.job.inference_mode else torch.no_grad()
        try:
            with mode:
                self._session(step)
        except Exception as error:
            report.error = f"{type(error).__name__}: {error}"
        now = self._held()
        report.moved = [name for name in self.held if self.held[name] != now.get(name)]
        report.moved += sorted(now.keys() - self.held.keys())
        if step.expect:
            wanted = self._loaded(step.expect)
            report.wrong = list(self._wrong(wanted))
            if self.computes is not None:
                report.logits = list(self.computes.wrong(wanted))
        return report

    def _session(self, step: Step) -> None:
        """Update in a session of SGLang's, by the class that its scheduler does it with."""
        manager = managers("scheduler_components.weight_updater").SchedulerWeightUpdaterManager(
            tp_worker=self,
            draft_worker=None,
            memory_saver_adapter=None,
            flush_cache=None,
            is_fully_idle=None,
            scheduler=SimpleNamespace(record_weight_version_change=self.versions),
        )
        requests = managers("io_struct")
        sent = requests.UpdateWeightsFromTensorReqInput(
            serialized_named_tensors=[base64.b64decode(step.payload)] * self.job.tp,
            load_format=step.load_format,
            flush_cache=False,
            selector="target",
        )
        begun = manager.begin_weight_update(requests.BeginWeightUpdateReqInput(selector="target"))
        assert begun.success, begun
        updated = manager.update_weights_from_tensor(sent)
        assert updated.success, updated
        if self.job.closes:
            ended = manager.end_weight_update(requests.EndWeightUpdateReqInput())
            assert ended.success, ended

    def weight_update_runners(self) -> list[tuple[str, object]]:
        """What the scheduler asks its worker for."""
        return [("target", SimpleNamespace(weight_updater=self.updater))]

    def deserialize_own_rank(self, payloads: list[bytes]) -> object:
        """As SGLang's worker does it (managers/tp_worker.py)."""
        utils: Any = importlib.import_module("sglang.srt.utils")
        return utils.MultiprocessingSerializer.deserialize(payloads[self.job.rank])

    def versions(self, new_version: str | None) -> None:
        """Take note of a version's name, which is not what these tests are about."""

    def _wrong(self, wanted: Any) -> Iterator[str]:
        """Name the tensors that differ from those of a second model."""
        found = live_tensors(self.model)
        for name, held in live_tensors(wanted).items():
            if not torch.equal(bits(found[name].tensor), bits(held.tensor)):
                yield name


class Passes:
    """Forward passes of a model, captured and not, and what they gave last."""

    def __init__(self, model: Any) -> None:
        replace_attention()
        self._run = forward_pass(model)
        self._captured = Captured(self._run)
        self._last = self._captured()

    def wrong(self, fresh: Any) -> Iterator[str]:
        """Say which logits are not those of a fresh model, or are those of before."""
        wanted, last = forward_pass(fresh)(), self._last
        self._last = self._captured()
        for name, found in (("captured", self._last), ("run now", self._run())):
            if not torch.equal(bits(found), bits(wanted)):
                worst = float((found - wanted).abs().max())
                yield f"{name}: off by up to {worst:g}"
        if not wanted.isfinite().all():
            yield "not finite"
        if not (wanted - last).abs().mean() > 0.1 * last.abs().mean():
            yield "hardly other than before"


def ready(folder: Path, rank: int) -> Path:
    """Return the file by which a rank says that it waits for orders."""
    return folder / f"{rank}.ready"


def be(job: Job, output: Path) -> None:
    """Be a rank, and write down what became of its orders."""
    reports = Reports()
    torch.set_grad_enabled(False)
    folder = output.with_suffix("")
    folder.mkdir()
    try:
        engine = Engine(job, folder)
        ready(output.parent, job.rank).touch()
        for step in job.steps:
            reports.steps.append(engine.run(step))
    except Exception:
        reports.raised = traceback.format_exc()
    output.write_text(reports.model_dump_json(), encoding="utf-8")


def managers(name: str) -> Any:
    """Return a module of SGLang's scheduler."""
    return importlib.import_module(f"sglang.srt.managers.{name}")


def prepare_updates(folder: Path, device: str = CPU, on_blackwell: bool = False) -> None:
    """Import what all ranks use, for the architecture of a config.json."""
    if device == CUDA:
        kernels.install()
    prepare(architecture_of(folder), device)
    if on_blackwell:
        deepgemm.pretend()
    managers("scheduler_components.weight_updater")
    importlib.import_module("sglang.srt.model_executor.model_runner_components.weight_updater")
    torch.set_num_threads(1)


def be_all(scenario: Scenario) -> None:
    """Be the only rank, or fork every rank and wait for all."""
    todo = [
        partial(be, job, scenario.output / f"{number}.json")
        for number, job in enumerate(scenario.jobs)
    ]
    if len(todo) == 1:
        todo[0]()
    else:
        run_forks(todo, len(todo))


def main(path: str) -> None:
    """Run a scenario."""
    scenario = Scenario.model_validate_json(Path(path).read_text(encoding="utf-8"))
    folder = scenario.output / "architecture"
    folder.mkdir()
    write_config(scenario.jobs[0].config, folder)
    first = scenario.jobs[0]
    prepare_updates(folder, device_of(first.arguments), first.deepgemm)
    be_all(scenario)


if __name__ == "__main__":
    main(sys.argv[1])

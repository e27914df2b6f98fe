"""Publishing from a trainer's hooks, and engines that are driven meanwhile."""

import importlib.util
import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
    distributed_c10d,
)
from torch.distributed.distributed_c10d import Store

from tests.runtime.live_models import model_of
from tests.runtime.local_jobs import WORLD, at_once, bf16
from tranship.compiler.pipeline import compile_transfer
from tranship.runtime.errors import DistributedError, StalePlanError
from tranship.runtime.frameworks.fsdp import fsdp_declaration
from tranship.runtime.hooks import EngineControl, Publisher, PublishError, hugging_face_callback
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver
from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.local import Ends, connect_locally
from tranship.runtime.transports.protocol import TransportError, World
from tranship.schema.codec import dump
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side
from tranship.schema.merge import merge
from tranship.schema.plan import TransferPlan
from tranship.schema.records import Declaration
from tranship.schema.transfer import Options


@dataclass
class Engine:
    """An engine in this process: its receivers are updated for real, and its calls noted."""

    receivers: Sequence[Receiver]
    name: str = "engine"
    fails: str = ""
    calls: list[str] = field(default_factory=list[str])

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call.split()[0] == self.fails:
            raise RuntimeError("it would not")

    def pause(self) -> None:
        self._note("pause")

    def update(self, version: int) -> None:
        for own in self.receivers:
            own.receive(version)
        self._note(f"update {version}")

    def flush(self) -> None:
        self._note("flush")

    def resume(self) -> None:
        self._note("resume")


def driven(version: int) -> list[str]:
    return ["pause", f"update {version}", "flush", "resume"]


class Job:
    """A trainer of one rank with a model that can be trained, and an engine that holds the same."""

    def __init__(self, folder: Path, timeout: float = 30.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 8)
        sender = fold(self.declare())
        self.receives = receiver = sender.model_copy(update={"side": Side.RECEIVER})
        self.plan = compile_transfer(sender, receiver, options=Options())
        self.files = write(folder, self.plan, sender)
        self.copy = model_of(receiver, 0)
        self.ends = connect_locally(World(1, 1), timeout)
        live = live_tensors(self.copy)
        self.receiver = Receiver.bind(self.plan, receiver, live, self.ends[1][0], 0)
        self.engine = Engine([self.receiver])

    def declare(self) -> Declaration:
        return fsdp_declaration(self.model, rank=0, world_size=1)

    def publisher(self, *engines: EngineControl) -> Publisher:
        return Publisher(
            *self.files,
            self.model,
            lambda: self.ends[0][0],
            0,
            engines or [self.engine],
            self.declare,
        )

    def arrived(self) -> bool:
        """Whether the engine holds what the trainer does."""
        held = self.copy.state_dict()
        return all(torch.equal(held[name], own) for name, own in self.model.state_dict().items())


def write(folder: Path, plan: TransferPlan, manifest: Manifest) -> tuple[Path, Path]:
    files = folder / "plan.json", folder / "trainer.json"
    for file, value in zip(files, (plan, manifest), strict=True):
        file.write_bytes(dump(value))
    return files


def test_versions_count_up_and_engines_are_driven_in_order(tmp_path: Path) -> None:
    job = Job(tmp_path)
    publisher = job.publisher()
    for version, given in ((1, None), (2, None), (7, 7), (8, None)):
        with torch.no_grad():
            job.model.weight.add_(1)
        assert not job.arrived()
        assert publisher.publish(given).version == version
        assert (publisher.version, job.receiver.committed_version) == (version, version)
        assert job.arrived()
    assert job.engine.calls == [call for n in (1, 2, 7, 8) for call in driven(n)]
    publisher.close()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_publishes_every_other_step(
    tmp_path: Path, kind: Callable[..., torch.optim.Optimizer]
) -> None:
    job = Job(tmp_path)
    optimizer = kind(job.model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(job.publisher().as_step_hook(every=2))
    arrived: list[bool] = []
    for _ in range(5):
        optimizer.zero_grad()
        job.model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
        arrived.append(job.arrived())
    assert arrived == [False, True, False, True, False]
    assert job.engine.calls == [*driven(1), *driven(2)]


def test_all_ranks_publish_and_one_of_them_drives_the_engines(tmp_path: Path) -> None:
    transfer = bf16()
    files = write(tmp_path, transfer.plan, transfer.sender)
    trainers, copies = transfer.models(Side.SENDER), transfer.models(Side.RECEIVER)
    ends: tuple[Ends, Ends] = connect_locally(WORLD, timeout=30)
    receivers = [
        Receiver.bind(
            transfer.plan, transfer.receiver, live_tensors(model), end, rank, transfer.recipes
        )
        for rank, (model, end) in enumerate(zip(copies, ends[1], strict=True))
    ]
    engines = [Engine([own], f"engine {rank}") for rank, own in enumerate(receivers)]

    def publisher(rank: int) -> Publisher:
        live = live_tensors(trainers[rank])
        driving = () if rank else engines
        # As one rank declares itself that knows of no axes.
        declared = replace(expand(transfer.sender, [rank]), axes=())
        return Publisher(*files, live, lambda: ends[0][rank], rank, driving, lambda: declared)

    publishers = [publisher(rank) for rank in range(WORLD.senders)]
    for version in (1, 2):
        for rank, model in enumerate(trainers):
            transfer.train(model, rank, version)
        stats = at_once([own.publish for own in publishers])
        assert [getattr(result, "version", result) for result in stats] == [version] * 2
        for rank, model in enumerate(copies):
            assert transfer.wrong(model, rank, version) == []
    assert [engine.calls for engine in engines] == [[*driven(1), *driven(2)]] * 2


def test_a_rank_need_not_declare_what_others_hold(tmp_path: Path) -> None:
    models = [nn.ModuleDict({name: nn.Linear(4, 8)}) for name in ("first", "second")]

    def declare(rank: int) -> Declaration:
        return fsdp_declaration(models[rank], rank=rank, world_size=2)

    sender = merge([(f"{rank}", fold(declare(rank))) for rank in range(2)])
    receiver = sender.model_copy(update={"side": Side.RECEIVER})
    plan = compile_transfer(sender, receiver, options=Options())
    files = write(tmp_path, plan, sender)
    copies = [model_of(receiver, rank) for rank in range(2)]
    ends: tuple[Ends, Ends] = connect_locally(World(2, 2), timeout=30)
    receivers = [
        Receiver.bind(plan, receiver, live_tensors(model), end, rank)
        for rank, (model, end) in enumerate(zip(copies, ends[1], strict=True))
    ]
    publishers = [
        Publisher(
            *files, model, partial(ends[0].__getitem__, rank), rank, (), partial(declare, rank)
        )
        for rank, model in enumerate(models)
    ]
    received = [partial(own.receive, 1) for own in receivers]
    at_once([*(own.publish for own in publishers), *received])
    for model, copy in zip(models, copies, strict=True):
        for name, tensor in model.state_dict().items():
            assert torch.equal(copy.state_dict()[name], tensor)


# --- what is left alone ---------------------------------------------------------------------------


def test_nothing_of_the_trainers_is_touched(tmp_path: Path) -> None:
    job = Job(tmp_path)
    publisher = job.publisher()
    before = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())
    job.model(torch.ones(1, 4)).sum().backward()
    grads = [parameter.grad for parameter in job.model.parameters()]
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            publisher.publish()
            assert torch.is_grad_enabled() == enabled
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert pickle.dumps(np.random.get_state()) == before[2]
    assert not dist.is_initialized()
    assert torch.get_default_dtype() == torch.float32
    assert [parameter.grad for parameter in job.model.parameters()] == grads
    assert all(parameter.requires_grad for parameter in job.model.parameters())


def all_groups() -> list[object]:
    world = distributed_c10d._world  # pyright: ignore[reportPrivateUsage] -- no public way
    return list(world.pg_map)


class Joining(Engine):
    """An engine that meets the trainer when it is first updated, over gloo."""

    def __init__(self, job: Job, store: Store) -> None:
        super().__init__([])
        self.job, self.store = job, store

    def update(self, version: int) -> None:
        if not self.receivers:
            end = connect_gloo(self.store, World(1, 1), Side.RECEIVER, 0, 30.0)
            live, manifest = live_tensors(self.job.copy), self.job.receives
            self.receivers = [Receiver.bind(self.job.plan, manifest, live, end, 0)]
        super().update(version)


def test_the_trainers_default_group_goes_on_working(tmp_path: Path) -> None:
    job, store = Job(tmp_path), HashStore()
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        before = all_groups()
        connect = partial(connect_gloo, store, World(1, 1), Side.SENDER, 0, 30.0)
        publisher = Publisher(*job.files, job.model, connect, 0, [Joining(job, store)])
        for _ in range(2):
            publisher.publish()
            total = torch.ones(1)
            dist.all_reduce(total)
            assert int(total) == 1
        assert job.arrived()
        assert dist.group.WORLD is group
        assert all_groups() == before
    finally:
        dist.destroy_process_group()


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_plan_of_another_manifest_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    side = job.plan.sender.model_copy(update={"manifest": "sha256:" + "0" * 64})
    job.files[0].write_bytes(dump(job.plan.model_copy(update={"sender": side})))
    with pytest.raises(StalePlanError, match="TS811"):
        job.publisher().publish()
    assert job.engine.calls == []


def test_a_model_that_changed_is_refused_with_what_changed(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.model = nn.Linear(6, 8, bias=False)
    with pytest.raises(StalePlanError) as caught:
        job.publisher().publish()
    found = caught.value.diagnostics
    assert {finding.code for finding in found} == {"TS875"}
    texts = [finding.message for finding in found]
    assert "weight: buffer.shape is [8, 6], declared is [8, 4]" in texts
    assert "bias: buffer is missing, declared is f32 [8]" in texts
    assert job.engine.calls == []


def test_a_model_without_a_declaration_is_compared_tensor_by_tensor(tmp_path: Path) -> None:
    job = Job(tmp_path)
    publisher = Publisher(
        *job.files, nn.Linear(4, 8).double(), lambda: job.ends[0][0], 0, [job.engine]
    )
    with pytest.raises(DiagnosticError, match="TS803"):
        publisher.publish()
    assert job.engine.calls == []


PAUSED = "paused until a later version succeeds, or they are started again: "


@pytest.mark.parametrize(
    ("fails", "message", "left", "version"),
    [
        ("pause", "odd: TS876: was not paused for version 1: it would not", "engine", 0),
        ("update", "odd: TS876: was not updated to version 1: it would not", "engine, odd", 1),
        ("flush", "odd: TS876: has version 1, and its cache was not", "engine, odd", 1),
        ("resume", "odd: TS876: has version 1, and was not resumed: it", "odd", 1),
    ],
)
def test_an_engine_that_fails_stays_paused(
    tmp_path: Path, fails: str, message: str, left: str, version: int
) -> None:
    job = Job(tmp_path)
    odd = Engine([], "odd", fails)
    publisher = job.publisher(job.engine, odd)
    with pytest.raises(PublishError) as caught:
        publisher.publish()
    (found,) = caught.value.diagnostics
    assert message in str(caught.value)
    assert found.help == PAUSED + left
    assert publisher.version == version
    assert ("resume" in job.engine.calls) == (fails == "resume")
    odd.fails = ""
    assert publisher.publish().version == version + 1
    assert odd.calls[-4:] == job.engine.calls[-4:] == driven(version + 1)


def test_a_version_that_not_all_ranks_commit_leaves_engines_paused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    publisher = job.publisher()
    publisher.publish()
    with pytest.raises(PublishError) as caught:
        publisher.publish(1)
    codes = [finding.code for finding in caught.value.diagnostics]
    assert codes == ["TS833", "TS833", "TS876"]
    assert all(
        finding.help and PAUSED + "engine" in finding.help for finding in caught.value.diagnostics
    )
    assert job.engine.calls == [*driven(1), "pause"]
    publisher.publish()
    assert job.engine.calls[-4:] == driven(2)


def test_ranks_that_do_not_meet_are_told_with_the_engines(tmp_path: Path) -> None:
    job = Job(tmp_path)

    def connect() -> Any:
        raise TransportError("nobody came")

    engine = Engine([])
    publisher = Publisher(*job.files, job.model, connect, 0, [engine])
    with pytest.raises(PublishError, match="sender rank 0: TS877: version 1 was not published: Tr"):
        publisher.publish()
    assert engine.calls == ["pause", "update 1"]
    with pytest.raises(TransportError, match="nobody came"):
        Publisher(*job.files, job.model, connect, 0).publish()


def test_a_rank_without_engines_raises_what_publishing_raises(tmp_path: Path) -> None:
    job = Job(tmp_path, timeout=0.2)
    with pytest.raises(DistributedError, match="TS836"):
        Publisher(*job.files, job.model, lambda: job.ends[0][0], 0).publish()


def test_steps_are_positive(tmp_path: Path) -> None:
    publisher = Job(tmp_path).publisher()
    with pytest.raises(ValueError, match="every 0 steps"):
        publisher.as_step_hook(every=0)
    with pytest.raises(ValueError, match="every 0 steps"):
        hugging_face_callback(publisher, every=0)


# --- Hugging Face ---------------------------------------------------------------------------------


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skip a test where packages are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed")


@needs("transformers")
def test_a_hugging_face_callback_publishes_every_other_step(tmp_path: Path) -> None:
    """The callback is called by transformers' own handler, as its Trainer calls it."""
    callbacks: Any = importlib.import_module("transformers.trainer_callback")
    job = Job(tmp_path)
    callback = hugging_face_callback(job.publisher(), every=2)
    assert isinstance(callback, callbacks.TrainerCallback)
    optimizer = torch.optim.SGD(job.model.parameters(), lr=0.1)
    handler = callbacks.CallbackHandler([callback], job.model, None, optimizer, None)
    state, control = callbacks.TrainerState(), callbacks.TrainerControl()
    arrived: list[bool] = []
    for step in range(1, 5):
        job.model(torch.ones(3, 4)).square().sum().backward()
        handler.on_substep_end(None, state, control)
        optimizer.step()
        state.global_step = step
        control = handler.on_step_end(None, state, control)
        arrived.append(job.arrived())
    assert arrived == [False, True, False, True]
    assert job.engine.calls == [*driven(1), *driven(2)]


class Regression(nn.Module):
    """A model as transformers' Trainer takes it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.inner(x)
        return {"loss": (out - y).square().mean(), "logits": out}


@needs("transformers", "accelerate")
def test_a_hugging_face_trainer_publishes(tmp_path: Path) -> None:
    transformers: Any = importlib.import_module("transformers")
    job = Job(tmp_path)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=6,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=Regression(job.model),
        args=arguments,
        train_dataset=[{"x": torch.randn(4), "y": torch.randn(8)} for _ in range(32)],
        callbacks=[hugging_face_callback(job.publisher(), every=3)],
    )
    trainer.train()
    assert job.engine.calls == [*driven(1), *driven(2)]
    assert job.arrived()

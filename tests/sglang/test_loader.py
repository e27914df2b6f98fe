"""Updates of real models by SGLang's own `WeightUpdater`, against what the models load."""

import base64
import multiprocessing
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore

from tests.models.configs import FP8
from tests.runtime.gloo_ranks import Dying
from tests.sglang.architectures import ARCHITECTURES
from tests.sglang.engine_ranks import Job, Report, Scenario, Step
from tests.sglang.orders import read_reports, step, update
from tests.sglang.test_trace import FOLDER, finding_tests, pytestmark
from tests.sglang.transfers import (
    EngineTransfer,
    engine_transfer,
    packed_transfer,
    traced_transfer,
)
from tranship.runtime.errors import DistributedError
from tranship.runtime.frameworks.sglang.control import Bind, Close
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Sender
from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.protocol import MessageTransport, World
from tranship.schema.codec import load
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Side

__all__ = ["pytestmark"]

LIMIT = 120
"""Seconds after which processes that hang are ended."""


@pytest.fixture(scope="module")
def store() -> TCPStore:
    """Where all meet."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def begin(folder: Path, jobs: Sequence[Job]) -> subprocess.Popen[bytes]:
    """Start ranks; what they write lies in `folder` once they are done."""
    folder.mkdir()
    path = folder / "scenario.json"
    path.write_text(Scenario(jobs=list(jobs), output=folder).model_dump_json(), encoding="utf-8")
    environment = finding_tests()
    return subprocess.Popen(
        [sys.executable, str(FOLDER / "engine_ranks.py"), str(path)], env=environment
    )


def reports(
    process: subprocess.Popen[bytes], folder: Path, count: int, limit: float = LIMIT
) -> list[list[Report]]:
    """Wait for the ranks, and return what each reported."""
    process.wait(limit)
    return read_reports(folder, count)


def bound(
    transfer: EngineTransfer,
    store: TCPStore,
    name: str,
    timeout: float = 60.0,
    odd: Callable[[MessageTransport], MessageTransport] = lambda transport: transport,
) -> Sender:
    """Be the trainer: meet the engine's ranks, and bind."""
    world = World(1, transfer.tp)
    end = odd(connect_gloo(PrefixStore(name, store), world, Side.SENDER, 0, timeout))
    live = live_tensors(transfer.trainer)
    return Sender.bind(transfer.plan, transfer.sender, live, end, 0)


VERSIONS = (1, 2, 5)


def delivered(
    folder: Path, store: TCPStore, transfer: EngineTransfer, name: str, **job: object
) -> list[list[Report]]:
    """Let an engine of two ranks meet under a name, receive some versions, and be closed."""
    latent = transfer.config["model_type"] == "deepseek_v3"
    steps = [step(transfer.bind(name, store.port), second_names=latent)]
    steps += [update(version, transfer.checkpoint(version)) for version in VERSIONS]
    steps += [step(Close(action="close")), update(6)]
    config, checkpoint = dict(transfer.config), transfer.checkpoint(0)
    asked = {"config": config, "tp": 2, "checkpoint": checkpoint, "steps": steps, **job}
    jobs = [Job.model_validate({**asked, "rank": rank}) for rank in range(2)]
    process = begin(folder, jobs)
    sender = bound(transfer, store, name)
    for version in VERSIONS:
        transfer.train(version)
        sender.publish(version)
    return reports(process, folder, 2)


def check_delivered(found: list[list[Report]]) -> None:
    for rank in found:
        *done, refused = rank
        assert done == [Report()] * len(done)
        assert "TS873" in refused.error


@pytest.mark.parametrize(("name", "fp8"), [("qwen3_moe", True), ("deepseek_v3", False)])
def test_versions_arrive_in_place(tmp_path: Path, store: TCPStore, name: str, fp8: bool) -> None:
    transfer = engine_transfer(tmp_path / "files", name, 2, fp8)
    assert bool(transfer.plan.derived) == (name == "deepseek_v3")
    how = {"closes": not fp8, "inference_mode": fp8}
    check_delivered(delivered(tmp_path / "ranks", store, transfer, name, **how))


def test_versions_arrive_where_modules_recompute_buffers_of_their_own(
    tmp_path: Path, store: TCPStore
) -> None:
    name = "qwen3_5_moe"
    transfer = traced_transfer(tmp_path / "files", name, 2)
    recipes = {step.recipe for step in transfer.plan.derived}
    assert recipes == {"GemmaRMSNorm.refresh_gemma_weight"}
    arguments = dict(ARCHITECTURES[name].arguments)
    found = delivered(tmp_path / "ranks", store, transfer, name, arguments=arguments)
    check_delivered(found)


@pytest.mark.parametrize(("name", "runs_experts"), [("qwen3_moe", False), ("deepseek_v3", True)])
def test_scales_are_packed_where_deepgemm_reads_them(
    tmp_path: Path, store: TCPStore, name: str, runs_experts: bool
) -> None:
    arguments = {"moe_runner_backend": "deep_gemm" if runs_experts else "triton"}
    options = [f"{key}={value}" for key, value in arguments.items()]
    transfer = packed_transfer(tmp_path / "files", name, 2, "--option", *options)
    held = expand(load(transfer.folder / "engine.json", Manifest).value).buffers
    plain = {b.name for b in held if b.encoding.kind == "scale" and b.layout == "row_major"}
    assert all(".experts.w" in scale for scale in plain)
    assert bool(plain) != runs_experts
    found = delivered(
        tmp_path / "ranks", store, transfer, f"packed {name}", arguments=arguments, deepgemm=True
    )
    check_delivered(found)
    job = Job(
        config=dict(transfer.config),
        tp=2,
        arguments=arguments,
        checkpoint=transfer.checkpoint(0),
        steps=[step(transfer.bind("unpacked", store.port))],
    )
    process = begin(tmp_path / "unpacked", [job])
    ((report,),) = reports(process, tmp_path / "unpacked", 1)
    scale = "'model.layers.0.self_attn.o_proj.weight_scale_inv'"
    assert f"TS803: {scale} has dtype torch.float32, declared is torch.int32" in report.error


# --- what goes wrong ------------------------------------------------------------------------------


def raw(name: str, text: str) -> Step:
    """A tensor that `control.py` has not made."""
    tensor = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    payload = base64.b64encode(pickle.dumps([(name, tensor)])).decode()
    return Step(payload=payload)


def with_digest(order: Bind, digest: str) -> Bind:
    plan = order.plan.model_copy(update={"digest": digest})
    return order.model_copy(update={"plan": plan})


def die(transfer: EngineTransfer, port: int, name: str, timeout: float) -> None:
    """Be a trainer that ends in the middle of a step."""
    store = TCPStore("127.0.0.1", port)
    store.wait([name])
    bound(transfer, store, name, timeout, Dying).publish(5)


def test_what_goes_wrong_is_told_and_nothing_is_half_bound(tmp_path: Path, store: TCPStore) -> None:
    transfer = engine_transfer(tmp_path / "files", "qwen3_moe", 1)
    other = engine_transfer(tmp_path / "other", "qwen3_moe", 1, moe_intermediate_size=512)
    good, again = (transfer.bind(name, store.port) for name in ("good", "again"))
    alone = transfer.bind("alone", store.port, timeout=0.5)
    nowhere = alone.model_copy(
        update={"meeting": alone.meeting.model_copy(update={"port": unused_port()})}
    )
    elsewhere = good.model_copy(update={"first_rank": 1})
    stale, checkpoint = with_digest(good, "sha256:" + "0" * 64), transfer.checkpoint
    expected = [
        (raw("weights", "{}"), "TS870: tensors ['weights'] came"),
        (raw("tranship", "{"), "control data:1:2: TS102: "),
        (raw("tranship", '{"format": "tranship.sglang/9"}'), "TS114: "),
        (update(1), "TS873: an update was ordered"),
        (step(stale), "TS872: "),
        (step(other.bind("other", store.port)), "TS804: "),
        (step(elsewhere), "receiver rank 1: TS812: "),
        (step(nowhere), "TransportError: meeting 'alone' at 127.0.0.1:"),
        (step(alone), "failed: control message 0 did not come back: "),
        (step(good), ""),
        (update(1, checkpoint(1)), ""),
        (step(stale), "TS872: "),
        (update(2, checkpoint(2)), ""),
        (update(3, checkpoint(2)), "TS832: "),
        (update(4, checkpoint(4)), ""),
        (step(transfer.bind("dying", store.port, timeout=2.0)), ""),
        (update(5), "TS836: control message 2 did not come back: "),
        (step(again), ""),
        (update(6, checkpoint(6)), ""),
    ]
    job = Job(
        config=dict(transfer.config),
        checkpoint=checkpoint(0),
        steps=[given for given, _ in expected],
    )
    context = multiprocessing.get_context("forkserver")
    dying = context.Process(target=die, args=(transfer, store.port, "dying", 2.0))
    dying.start()
    process = begin(tmp_path / "ranks", [job])
    sender = bound(transfer, store, "good")
    for version in (1, 2, 4):
        transfer.train(version)
        if version == 4:
            with pytest.raises(DistributedError, match="TS832"):
                sender.publish(version)
        sender.publish(version)
    store.set("dying", "")
    dying.join(LIMIT)
    assert dying.exitcode == 17
    sender = bound(transfer, store, "again")
    transfer.train(6)
    sender.publish(6)
    (found,) = reports(process, tmp_path / "ranks", 1)
    for report, (_, error) in zip(found, expected, strict=True):
        assert (error in report.error, bool(report.error)) == (True, bool(error)), (error, report)
        assert (report.wrong, report.moved) == ([], []), (error, report)


def unused_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


PER_TENSOR = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}


UNFIT: Sequence[tuple[dict[str, object], dict[str, object], bool, str]] = (
    ({}, {"quantization": "fp8"}, False, "quantized to FP8 after they were loaded"),
    ({"quantization_config": PER_TENSOR}, {}, False, "in FP8 per tensor are transposed"),
    (FP8, {}, True, "packed for DeepGEMM"),
)
"""Changes of a configuration, launch arguments, whether scales are packed, why that is unfit."""


def test_engines_that_change_their_weights_are_refused(tmp_path: Path, store: TCPStore) -> None:
    transfer = engine_transfer(tmp_path / "files", "qwen3_moe", 1)
    order = transfer.bind("refused", store.port)
    jobs = [
        Job(
            config={**transfer.config, **changes},
            arguments=given,
            steps=[step(order, packed=packed)],
        )
        for changes, given, packed, _ in UNFIT
    ]
    process = begin(tmp_path / "ranks", jobs)
    found = reports(process, tmp_path / "ranks", len(jobs))
    for (report,), (*_, reason) in zip(found, UNFIT, strict=True):
        assert report.error.startswith("DiagnosticError: receiver rank 0: TS871: ")
        assert reason in report.error
        assert "model.layers.0.self_attn" in report.error

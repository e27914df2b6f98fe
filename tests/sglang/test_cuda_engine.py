"""Real engines on a GPU, updated in place by another process: what they hold, what they compute.

The trainer is this process; every rank of the engine is one of its own, and all are on one GPU. The
engine's geometry is traced there, too. Attention and some kernels that SGLang has compiled are
torch's (`forward.py`, `kernels.py`); the rest is the engine's own, its session and its graph too.
"""

import time
from pathlib import Path

import pytest
import torch
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore

from tests.cli.golden import assert_golden
from tests.sglang.engine_ranks import Job, Report, ready
from tests.sglang.orders import step, update
from tests.sglang.test_loader import VERSIONS, begin, reports
from tests.sglang.test_trace import pytestmark as needs_sglang
from tests.sglang.transfers import EngineTransfer, cuda_transfer, packed_transfer
from tranship.runtime.frameworks.sglang.control import Close
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Sender
from tranship.runtime.transports.cuda_ipc import connect_cuda_ipc
from tranship.runtime.transports.protocol import World
from tranship.schema.codec import load
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Side

pytestmark = [
    *needs_sglang,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

LIMIT = 120.0
"""Seconds that a rank may take for a step, most of them to compile kernels for its fresh model."""

SMALL = {"hidden_size": 512, "num_hidden_layers": 2, "moe_intermediate_size": 256}
ROUTED = SMALL | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}
CHANGES: dict[str, dict[str, object]] = {
    "qwen3": {"hidden_size": 512, "num_hidden_layers": 2},
    "qwen3_moe": {**SMALL},
    "glm4_moe": {**ROUTED},
    "deepseek_v3": {**ROUTED},
}
"""What is different from the small configurations, so that kernels which are there can serve."""

CASES = (
    ("qwen3", True, 1, 1),
    ("qwen3_moe", True, 1, 1),
    ("qwen3_moe", False, 1, 1),
    ("glm4_moe", True, 1, 1),
    ("deepseek_v3", True, 1, 1),
    ("qwen3", True, 2, 1),
    ("qwen3_moe", True, 2, 2),
    ("glm4_moe", True, 2, 1),
    ("deepseek_v3", True, 2, 2),
)
"""Architecture, FP8 or not, ranks, and groups of experts."""


def jobs(transfer: EngineTransfer, name: str, port: int, **more: object) -> list[Job]:
    """Let every rank bind, receive some versions, and close."""
    steps = [step(transfer.bind(name, port, LIMIT, "cuda_ipc"))]
    steps += [update(version, transfer.checkpoint(version)) for version in VERSIONS]
    steps += [step(Close(action="close"))]
    whole = {
        "config": dict(transfer.config),
        "tp": transfer.tp,
        "arguments": {"device": "cuda"},
        "checkpoint": transfer.checkpoint(0),
        "steps": steps,
        **more,
    }
    return [Job.model_validate({**whole, "rank": rank}) for rank in range(transfer.tp)]


def deliver(tmp_path: Path, transfer: EngineTransfer, name: str, **more: object) -> None:
    """Publish all versions to an engine, and see that each is what the engine loads of it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # CUDA does not survive a fork: every rank is a process that imports SGLang.
    ranks = [
        (begin(folder, [job]), folder)
        for job in jobs(transfer, name, store.port, **more)
        for folder in [tmp_path / f"rank-{job.rank}"]
    ]
    for number, (process, folder) in enumerate(ranks):
        while not ready(folder, number).exists():
            assert process.poll() is None, (folder / "0.json").read_text()
            time.sleep(0.1)
    device = torch.device("cuda", 0)
    world = World(1, transfer.tp)
    end = connect_cuda_ipc(PrefixStore(name, store), world, Side.SENDER, 0, device, timeout=LIMIT)
    live = live_tensors(transfer.trainer)
    sender = Sender.bind(transfer.plan, transfer.sender, live, end, 0)
    for version in VERSIONS:
        transfer.train(version)
        sender.publish(version)
    for process, folder in ranks:
        (found,) = reports(process, folder, 1, LIMIT)
        assert found == [Report()] * len(found)
    sender.close()


@pytest.mark.parametrize(("name", "fp8", "tp", "ep"), CASES)
def test_an_engine_holds_and_computes_what_a_freshly_loaded_one_does(
    tmp_path: Path, name: str, fp8: bool, tp: int, ep: int
) -> None:
    transfer = cuda_transfer(tmp_path / "files", name, tp, ep, fp8, **CHANGES[name])
    title = f"{name}-{'fp8' if fp8 else 'bf16'}-tp{tp}-ep{ep}-cuda"
    assert_golden(f"sglang/{title}.json", (transfer.folder / "traced.json").read_text())
    deliver(tmp_path, transfer, name, ep=ep, computes=tp == 1)


def test_scales_are_packed_for_deepgemm(tmp_path: Path) -> None:
    name = "deepseek_v3"
    transfer = packed_transfer(tmp_path / "files", name, 2, device="cuda", **CHANGES[name])
    # What reads packed scales runs on Blackwell alone.
    deliver(tmp_path, transfer, name, deepgemm=True)


def test_an_engine_is_traced_as_it_is_on_a_gpu(tmp_path: Path) -> None:
    transfer = cuda_transfer(tmp_path / "files", "glm4_moe", 1, 1, True, **ROUTED)
    engine = expand(load(transfer.folder / "engine.json", Manifest).value)
    (experts,) = (b for b in engine.buffers if b.name == "model.layers.1.mlp.experts.w13_weight")
    # There the shared expert is one more of the routed ones.
    assert experts.shape[0] == 5
    assert not [b.name for b in engine.buffers if ".shared_experts." in b.name]
    assert engine.framework is not None
    assert engine.framework.options["device"] == "cuda"

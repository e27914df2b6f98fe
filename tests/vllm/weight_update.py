"""Update a real vLLM model through vLLM's weight-transfer API, as its workers call it.

    python tests/vllm/weight_update.py FOLDER

Leaves `report.json`. vLLM is imported once, and every model is built in a fork of that process.
"""

import importlib
import json
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore

from tests.runtime.live_models import model_of
from tests.runtime.odd_transports import Passing
from tests.sglang.configs import random_values
from tests.sglang.replay import UNWRITTEN, bits
from tests.vllm.cases import Case
from tests.vllm.engines import derive, trace
from tests.vllm.results import Result
from tranship.compiler.pipeline import compile_transfer
from tranship.runtime.errors import DistributedError
from tranship.runtime.frameworks.tracing.config import architecture_of
from tranship.runtime.frameworks.tracing.forks import run_forks
from tranship.runtime.frameworks.tracing.sources import on_meta
from tranship.runtime.frameworks.vllm.boot import Place, boot, build_model, prepare
from tranship.runtime.frameworks.vllm.boot import register as register_model
from tranship.runtime.frameworks.vllm.plugin import BACKEND, register
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Sender
from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.protocol import (
    MessageTransport,
    Parcel,
    TransportError,
    World,
)
from tranship.schema.codec import dump
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Side
from tranship.schema.transfer import Options

PLAIN, QUANTIZED = Case("qwen3", False, 1, 1), Case("qwen3_moe", True, 1, 1)
LATENT = Case("deepseek_v3", True, 1, 1)
TIMEOUT = 30.0
SPOILED = "spoiled"
"""The meeting in which an update fails."""


def worker(folder: Path) -> tuple[Any, Any]:
    """Build a model, and the engine that vLLM makes for it."""
    config = boot(folder, Place(1, False, 0), {})
    model: Any = build_model(config, "cpu")
    register()
    register()  # vLLM may load a plugin more than once
    settings: Any = importlib.import_module("vllm.config.weight_transfer")
    module: Any = importlib.import_module("vllm.distributed.weight_transfer.factory")
    asked = settings.WeightTransferConfig(backend=BACKEND)
    factory = module.WeightTransferEngineFactory
    return model, factory.create_engine(asked, config, torch.device("cpu"), model)


def refused(engine: Any, info: dict[str, Any]) -> str:
    """Return why an engine cannot be initialized."""
    try:
        engine.init_transfer_engine(engine.parse_init_info(info))
    except (DiagnosticError, TransportError, ValueError) as error:
        return str(error)
    return ""


@dataclass
class Spoiling(Passing):
    """Changes one bit of everything that is sent."""

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        sends[0].memory[5] ^= 4
        self.inner.exchange(number, sends, receives)


@contextmanager
def trainer(result: Result, given: Manifest) -> Generator[tuple[int, Any]]:
    """Serve a store; yield the port, and a way to meet the engine anew and publish a version."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    theirs = result.manifest(0)
    plan = compile_transfer(given, theirs, options=Options())
    (result.folder / "plan.json").write_bytes(dump(plan))
    (result.folder / "engine.json").write_bytes(dump(theirs))
    (result.folder / "other.json").write_bytes(dump(theirs.model_copy(update={"axes": ()})))
    source = model_of(given, 0)

    def serve(name: str, version: int) -> None:
        store_of_meeting, world = PrefixStore(name, store), World(senders=1, receivers=1)
        end: MessageTransport = connect_gloo(store_of_meeting, world, Side.SENDER, 0, TIMEOUT)
        end = Spoiling(end) if name == SPOILED else end
        with Sender.bind(plan, given, live_tensors(source), end, 0) as sender:
            sender.publish(version)

    with ThreadPoolExecutor(1) as pool:

        def publish(name: str, version: int, checkpoint: dict[str, torch.Tensor]) -> Any:
            for key, held in live_tensors(source).items():
                held.tensor.copy_(checkpoint[key])
            return pool.submit(serve, name, version)

        yield store.port, publish


def update(result: Result) -> None:
    """Send two versions to an engine, and compare each with what vLLM's own loading gives."""
    model, engine = worker(result.folder)
    if result.case.fp8:
        choose_kernels_that_keep(model)
    derive(model)
    # On a CPU there is nothing to wait for, and torch refuses to.
    torch.accelerator.synchronize = lambda: None
    given = result.case.checkpoint(result.config)
    like = on_meta({b.name: (b.dtype, b.shape) for b in expand(given).buffers})
    report: dict[str, list[bool] | str] = {}
    equal: list[bool] = []
    in_place: list[bool] = []
    with trainer(result, given) as (port, publish):
        names = ("plan", "engine", "other")
        files = {name: str(result.folder / f"{name}.json") for name in names}
        info = {"plan": files["plan"], "manifest": files["engine"], "host": "127.0.0.1"}
        info |= {"port": port, "name": "first", "timeout": TIMEOUT}
        report["no such transport"] = refused(engine, info | {"transport": "pigeon"})
        report["no such argument"] = refused(engine, info | {"speed": 11})
        info |= {"transport": "gloo"}
        # Nobody is there to be met.
        report["other manifest"] = refused(engine, info | {"manifest": files["other"]})
        report["other rank"] = refused(engine, info | {"first_rank": 5})
        report["nobody serves"] = refused(engine, info | {"port": 1, "timeout": 1.0})
        for version, name in enumerate(("first", SPOILED, "second"), 1):
            checkpoint = random_values(like, version)
            before = addresses(model)
            sent = publish(name, version, checkpoint)
            engine.init_transfer_engine(engine.parse_init_info(info | {"name": name}))
            engine.start_weight_update()
            if name == SPOILED:
                report["spoiled"] = spoiled(engine, version)
                report["then"] = [bool(tensor.isnan().all()) for tensor in norms(model)]
                continue
            engine.update_weights({"version": version})
            engine.finish_weight_update()
            sent.result()
            in_place.append(addresses(model) == before)
            equal.append(same_as_loaded(model, checkpoint))
        engine.shutdown()
    report |= {"equal": equal, "in place": in_place}
    (result.folder / "report.json").write_text(json.dumps(report))


def spoiled(engine: Any, version: int) -> str:
    """Return why an update failed."""
    try:
        engine.update_weights({"version": version})
    except DistributedError as error:
        return str(error)
    return ""


def norms(model: Any) -> list[torch.Tensor]:
    """Return the weights of all norms, without which nothing is computed."""
    return [one for name, one in model.named_parameters() if name.endswith("norm.weight")]


def addresses(model: Any) -> dict[str, int]:
    """Return where a model's tensors are."""
    return {name: held.tensor.data_ptr() for name, held in live_tensors(model).items()}


def same_as_loaded(model: Any, checkpoint: dict[str, torch.Tensor]) -> bool:
    """Whether a model holds, bit by bit, what vLLM's own code makes of a checkpoint."""
    held = {name: one.detach() for name, one in model.named_parameters()}
    received = {name: bits(tensor).clone() for name, tensor in held.items()}
    for tensor in held.values():
        memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        memory.fill_(UNWRITTEN)
    model.load_weights(iter(checkpoint.items()))
    derive(model)
    return all(torch.equal(bits(held[name]), received[name]) for name in held)


def refuse(folder: Path) -> None:
    """Note why an engine is not updated whose kernels pack weights, and if others are chosen."""
    model, engine = worker(folder)
    manifest = folder / "engine.json"
    manifest.write_bytes(dump(QUANTIZED.checkpoint(str(folder / "config.json"))))
    info = {"plan": "no plan.json", "manifest": str(manifest), "host": "127.0.0.1", "port": 1}
    info |= {"name": "none"}
    report = {"packing": refused(engine, info)}
    choose_kernels_that_keep(model)
    report["keeping"] = refused(engine, info)
    model.lm_head.cpu_linear = None  # what vLLM sets where it has packed a layer on a CPU
    report["packed"] = refused(engine, info)
    del model.lm_head.cpu_linear
    kernels: Any = model.model.layers[1].self_attn.attn.impl
    kind = keep_sinks(kernels)
    report["sinks"] = refused(engine, info)
    kernels.__class__ = kind
    model.process_weights_after_loading = model.eval  # some models have such a method
    report["model"] = refused(engine, info)
    del model.process_weights_after_loading
    engine.parallel_config.enable_eplb = True
    report["moving experts"] = refused(engine, info)
    (folder / "report.json").write_text(json.dumps(report))


def keep_sinks(kernels: Any) -> Any:
    """Let kernels of attention keep a copy of the sinks, as FlashInfer's and b12x's do.

    Returns their class as it was.
    """
    kind: Any = kernels.__class__

    class Copying(kind):
        _sinks_source = torch.zeros(2)

        def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
            self.sinks = self._sinks_source.to(act_dtype)

    kernels.__class__ = Copying
    return kind


def choose_kernels_that_keep(model: Any) -> None:
    """Put in place what vLLM would choose on a GPU that has neither DeepGEMM nor FlashInfer."""
    linear: Any = importlib.import_module("vllm.model_executor.kernels.linear.scaled_mm.cutlass")
    oracle = "vllm.model_executor.layers.fused_moe.oracle"
    experts: Any = importlib.import_module(f"{oracle}.fp8")
    plain_experts: Any = importlib.import_module(f"{oracle}.unquantized")
    kernel = linear.CutlassFp8BlockScaledMMKernel
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if hasattr(method, "fp8_linear"):
            method.fp8_linear = kernel.__new__(kernel)
        if hasattr(method, "fp8_backend"):
            method.fp8_backend = experts.Fp8MoeBackend.TRITON
        if hasattr(method, "unquantized_backend"):
            method.unquantized_backend = plain_experts.UnquantizedMoeBackend.TRITON


def leave_plain(path: Path, module: str) -> None:
    """Let a config leave one more module alone."""
    config = json.loads(path.read_text())
    config["quantization_config"]["modules_to_not_convert"].append(module)
    path.write_text(json.dumps(config))


def main(folder: Path) -> None:
    """Run all."""
    cases = PLAIN, QUANTIZED, LATENT
    folders = [folder / case.title for case in cases]
    for case, own in zip(cases, folders, strict=True):
        own.mkdir()
        case.write(own)
    leave_plain(folders[1] / "config.json", "model.layers.0.mlp.experts")
    prepare(architecture_of(folders[0]))
    for other in folders[1:]:
        register_model(architecture_of(other))
    torch.set_num_threads(1)
    jobs = (
        partial(trace, PLAIN.request(folders[0], (0,)), 0),
        partial(update, Result(PLAIN, folders[0])),
        partial(refuse, folders[1]),
        partial(trace, LATENT.request(folders[2], (0,)), 0),
        partial(update, Result(LATENT, folders[2])),
    )
    for job in jobs:
        if run_forks([job]):
            sys.exit("a job has failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

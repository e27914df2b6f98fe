"""Transfers from a plain module with a checkpoint's tensors to a real engine, and their oracles."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tests.cli.golden import GOLDEN
from tests.models.configs import FP8
from tests.models.configs import write_config as write_model
from tests.properties.dense import quantize
from tests.runtime.live_models import place
from tests.sglang.architectures import ARCHITECTURES
from tests.sglang.load import write_tensors
from tranship.compiler.pipeline import compile_transfer
from tranship.models.produce import Request, produce
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.frameworks.fsdp import fsdp_declaration
from tranship.runtime.frameworks.sglang.control import Bind, Meeting, committed_file
from tranship.runtime.frameworks.tracing.scales import SCALE_SUFFIX
from tranship.schema.codec import dump, load
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.formulas import FormulaName
from tranship.schema.manifest import Kind, Manifest
from tranship.schema.plan import TransferPlan
from tranship.schema.testing import Encoding
from tranship.schema.transfer import Options

BLOCK = (128, 128)
ROOT = Path(__file__).parents[2]


TransportName = Literal["gloo", "cuda_ipc"]

Sources = Mapping[str, tuple[DType, tuple[int, ...]]]
"""Dtype and shape of every tensor of the checkpoint that the engine loads."""


def random_weights(sources: Sources, version: int, peaks: bool = False) -> dict[str, Tensor]:
    """Return all weights of a version as a trainer has them, not quantized.

    With `peaks` the greatest value of each block is 448 times a power of two: requantizing codes
    whose scale is a power of two then changes neither.
    """
    generator = torch.Generator().manual_seed(version)
    found: dict[str, Tensor] = {}
    for name, (dtype, shape) in sources.items():
        if not name.endswith(SCALE_SUFFIX):
            plain = DType.BF16 if dtype is DType.F8E4M3FN else dtype
            values = torch.randn(shape, generator=generator) * 0.02
            if name.endswith("norm.weight"):
                values += 1.0
            if peaks and dtype is DType.F8E4M3FN:
                blocks = values[..., ::128, ::128]
                blocks.copy_(torch.randint(-12, -8, blocks.shape, generator=generator).exp2() * 448)
            found[name] = values.to(torch_dtype(plain))
    return found


def quantized(
    weights: Mapping[str, Tensor], sources: Sources, formula: FormulaName = "divide"
) -> dict[str, Tensor]:
    """Return the checkpoint that an engine would be given of a trainer's weights."""
    found: dict[str, Tensor] = {}
    for name, (dtype, _) in sources.items():
        if dtype is DType.F8E4M3FN:
            encoding = Encoding(DType.F8E4M3FN, BLOCK)
            found[name], found[name + SCALE_SUFFIX] = quantize(weights[name], encoding, formula)
        elif not name.endswith(SCALE_SUFFIX):
            found[name] = weights[name].to(torch_dtype(dtype))
    return found


def bind_order(
    plan: Path,
    manifest: Path,
    name: str,
    port: int,
    timeout: float,
    transport: TransportName = "gloo",
) -> Bind:
    """Order to bind to committed files, at a meeting of this name."""
    host = "127.0.0.1"
    return Bind(
        action="bind",
        plan=committed_file(plan, TransferPlan),
        manifest=committed_file(manifest, Manifest),
        meeting=Meeting(host=host, port=port, name=name, transport=transport, timeout=timeout),
        first_rank=0,
    )


@dataclass(frozen=True)
class EngineTransfer:
    """A trainer of one rank, the ranks of an engine, and the committed files between them.

    Both sides quantize by `formula`; of powers of two, weights have peaks.
    """

    config: Mapping[str, Any]
    tp: int
    folder: Path
    sources: Sources
    trainer: nn.Module
    sender: Manifest
    plan: TransferPlan
    formula: FormulaName = "divide"

    def weights(self, version: int) -> dict[str, Tensor]:
        """Return the weights of a version."""
        return random_weights(self.sources, version, self.formula == "power_of_two")

    def train(self, version: int) -> None:
        """Put a version into the trainer's model, in place."""
        with torch.no_grad():
            for name, value in self.weights(version).items():
                self.trainer.get_parameter(name).copy_(value)

    def checkpoint(self, version: int) -> Path:
        """Write the checkpoint of a version as the engine would be given it, quantized."""
        path = self.folder / f"{version}.safetensors"
        write_tensors(quantized(self.weights(version), self.sources, self.formula), path)
        return path

    def bind(
        self, name: str, port: int, timeout: float = 60.0, transport: TransportName = "gloo"
    ) -> Bind:
        """Order to bind, at a meeting of this name."""
        plan, manifest = self.folder / "plan.json", self.folder / "engine.json"
        return bind_order(plan, manifest, name, port, timeout, transport)


def engine_transfer(
    folder: Path, name: str, tp: int, fp8: bool = False, **changes: object
) -> EngineTransfer:
    """Compile a transfer to an engine of `tp` ranks, by an offline manifest."""
    folder.mkdir()
    path = write_model(folder, name, **changes, **(FP8 if fp8 else {}))
    checkpoint = produce(Request(name, path, "checkpoint", {}))
    engine = produce(Request(name, path, "sglang", {"tp_size": str(tp), "device": "cpu"}))
    sources = {b.name: (b.dtype, b.shape) for b in expand(checkpoint).buffers}
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    return _transfer(folder, config, sources, engine)


def traced_transfer(folder: Path, name: str, tp: int) -> EngineTransfer:
    """Compile a transfer to an engine of `tp` ranks in BF16, by the manifest that was traced."""
    folder.mkdir()
    known = ARCHITECTURES[name]
    engine = load(GOLDEN / "sglang" / f"{name}-bf16-tp{tp}-ep1.json", Manifest).value
    return _transfer(folder, known.settings(fp8=False), known.sources(fp8=False), engine)


def cuda_transfer(
    folder: Path, name: str, tp: int, ep: int, fp8: bool, **changes: object
) -> EngineTransfer:
    """Compile a transfer on one GPU to an engine that is traced there."""
    config = {**changes, **(FP8 if fp8 else {})}
    options = ("--tp", f"{tp}", "--ep", f"{ep}", "--option", "device=cuda")
    return _newly_traced(folder, name, options, config, device="cuda")


def packed_transfer(
    folder: Path, name: str, tp: int, *options: str, device: str = "cpu", **changes: object
) -> EngineTransfer:
    """Compile a transfer to an engine in FP8 that is traced as DeepGEMM reads it on Blackwell."""
    asked = ("--tp", f"{tp}", "--deepgemm", "packed", "--option", f"device={device}", *options)
    config = {**changes, **FP8}
    return _newly_traced(folder, name, asked, config, device=device, formula="power_of_two")


def _newly_traced(
    folder: Path,
    name: str,
    options: Sequence[str],
    changes: Mapping[str, object],
    **how: Any,
) -> EngineTransfer:
    folder.mkdir()
    path = write_model(folder, name, **changes)
    checkpoint = produce(Request(name, path, "checkpoint", {}))
    traced = folder / "traced.json"
    asked = ("-c", path, "-a", name, *options, "-o", str(traced))
    command = [sys.executable, "-m", "tranship", "trace", "sglang", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sources = {b.name: (b.dtype, b.shape) for b in expand(checkpoint).buffers}
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    return _transfer(folder, config, sources, load(traced, Manifest).value, **how)


def _transfer(
    folder: Path,
    config: Mapping[str, Any],
    sources: Sources,
    engine: Manifest,
    device: str = "cpu",
    formula: FormulaName = "divide",
) -> EngineTransfer:
    trainer = nn.Module()
    for key, value in random_weights(sources, 0).items():
        place(trainer, key, Kind.PARAMETER, value.to(device))
    sender = fold(fsdp_declaration(trainer, rank=0, world_size=1))
    plan = compile_transfer(sender, engine, options=Options(formula=formula))
    (folder / "plan.json").write_bytes(dump(plan))
    (folder / "trainer.json").write_bytes(dump(sender))
    (folder / "engine.json").write_bytes(dump(engine))
    return EngineTransfer(
        config, engine.world_size, folder, sources, trainer, sender, plan, formula
    )

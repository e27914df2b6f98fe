"""Update vLLM models whose weights have been prepared for DeepGEMM, as on Hopper and on Blackwell.

    python tests/vllm/deepgemm.py FOLDER

Leaves `FORM/report.json`. vLLM's own code chooses what is requantized, and requantizes, in torch.
No kernel of DeepGEMM is run; its function that lays scales out is stood in for: on Hopper it
returns them as they are, on Blackwell it packs them (tests/runtime/test_deepgemm.py).
"""

import importlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.runtime.packed_cases import packed
from tests.sglang.replay import bits
from tests.sglang.transfers import quantized, random_weights
from tests.vllm.cases import Case
from tests.vllm.engines import trace
from tests.vllm.results import Result
from tests.vllm.weight_update import TIMEOUT, addresses, refused, trainer, worker
from tranship.models.produce import Request, produce
from tranship.runtime.frameworks.tracing.config import architecture_of
from tranship.runtime.frameworks.tracing.deepgemm import DeepGemm
from tranship.runtime.frameworks.tracing.forks import run_forks
from tranship.runtime.frameworks.vllm.boot import build_model, prepare
from tranship.runtime.live import live_tensors
from tranship.schema.layouts import packed_scales

CASE = Case("qwen3_moe", True, 1, 1)
FORMS: tuple[DeepGemm, ...] = ("power_of_two", "packed")
EXPERTS = {"moe_backend": "deep_gemm"}


def as_on_hopper(sf: Tensor, **_: object) -> Tensor:
    """Return float32 scales of 128 x 128 blocks as they are."""
    return sf


def as_on_blackwell(sf: Tensor, mn: int, k: int, num_groups: int, **_: object) -> Tensor:
    """Pack float32 scales `[num_groups, blocks of rows, blocks]`."""
    shape, strides = packed_scales((num_groups, mn, k))
    found = torch.empty_strided(shape, strides, dtype=torch.int32)
    return found.copy_(torch.stack([packed(group, mn) for group in sf]))


def pretend(form: DeepGemm) -> None:
    """Let vLLM believe in DeepGEMM, and in the GPU that has scales of this form."""

    def used() -> bool:
        return True

    kernels: Any = importlib.import_module("vllm.utils.deep_gemm")
    quantization = "vllm.model_executor.layers.quantization.utils.fp8_utils"
    for module in (kernels, importlib.import_module(quantization)):
        vars(module).update(is_deep_gemm_e8m0_used=used)
    lays_out = as_on_blackwell if form == "packed" else as_on_hopper
    kernels._transform_sf_into_required_layout_impl = lays_out
    # What vLLM asks its platform, which is a CPU here.
    torch.accelerator.synchronize = lambda: None


def prepared(model: Any, checkpoint: dict[str, Tensor]) -> Any:
    """Load a checkpoint, and prepare it for DeepGEMM, by vLLM's own code."""
    linear: Any = importlib.import_module("vllm.model_executor.kernels.linear.scaled_mm.deep_gemm")
    oracle: Any = importlib.import_module("vllm.model_executor.layers.fused_moe.oracle.fp8")
    utils: Any = importlib.import_module("vllm.model_executor.utils")
    model.load_weights(iter(checkpoint.items()))
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if hasattr(method, "fp8_linear"):
            kernel = linear.DeepGemmFp8BlockScaledMMKernel
            method.fp8_linear = kernel.__new__(kernel)
            vars(method.fp8_linear).update(use_deep_gemm_e8m0=True, is_deep_gemm_supported=True)
            method.fp8_linear.process_weights_after_loading(module)
        elif hasattr(method, "fp8_backend"):
            method.fp8_backend = oracle.Fp8MoeBackend.DEEPGEMM
            names = ("w13_weight", "w2_weight", "w13_weight_scale_inv", "w2_weight_scale_inv")
            loaded = [getattr(module, name).data for name in names]
            made = oracle.convert_to_fp8_moe_kernel_format(
                method.fp8_backend, module, *loaded, None, None
            )
            for name, tensor in zip(names, made, strict=True):
                utils.replace_parameter(module, name, tensor)
    return model


def update(form: DeepGemm, result: Result) -> None:
    """Send two versions in BF16 to an engine, and compare each with a fresh one."""
    pretend(form)
    model, engine = worker(result.folder)
    sources = CASE.request(result.folder, (0,)).sources

    def checkpoint(version: int) -> dict[str, Tensor]:
        return quantized(random_weights(sources, version, True), sources, "power_of_two")

    prepared(model, checkpoint(0))
    given = produce(Request(CASE.model, result.config, "checkpoint", {}, "bf16"))
    report: dict[str, Any] = {"wrong": [], "in place": []}
    with trainer(result, given) as (port, publish):
        files = {name: str(result.folder / f"{name}.json") for name in ("plan", "engine", "any")}
        text = Path(files["engine"]).read_text()
        Path(files["any"]).write_text(text.replace(', "scale_values": "power_of_two"', ""))
        info = {"plan": files["plan"], "manifest": files["engine"], "host": "127.0.0.1"}
        info |= {"port": port, "name": "refused", "timeout": TIMEOUT, "transport": "gloo"}
        report["any"] = refused(engine, info | {"manifest": files["any"]})
        for version in (1, 2):
            before = addresses(model)
            sent = publish(f"{version}", version, random_weights(sources, version, True))
            engine.init_transfer_engine(engine.parse_init_info(info | {"name": f"{version}"}))
            engine.start_weight_update()
            engine.update_weights({"version": version})
            engine.finish_weight_update()
            sent.result()
            report["in place"].append(addresses(model) == before)
            engine.vllm_config.compilation_config.static_forward_context.clear()
            fresh = prepared(build_model(engine.vllm_config, "cpu"), checkpoint(version))
            report["wrong"] += differing(model, fresh)
        engine.shutdown()
    kinds = {name: f"{held.tensor.dtype}" for name, held in live_tensors(model).items()}
    report["scales"] = sorted({kinds[name] for name in kinds if name.endswith("scale_inv")})
    (result.folder / "report.json").write_text(json.dumps(report))


def differing(model: Any, fresh: Any) -> list[str]:
    """Name the parameters that differ between two models."""
    wanted = dict(fresh.named_parameters())
    held = dict(model.named_parameters())
    assert held.keys() == wanted.keys()
    return [name for name in held if not torch.equal(bits(held[name]), bits(wanted[name]))]


def main(folder: Path) -> None:
    """Run all."""
    for number, form in enumerate(FORMS):
        own = folder / form
        own.mkdir()
        CASE.write(own)
        if not number:
            prepare(architecture_of(own))
            torch.set_num_threads(1)
        asked = CASE.request(own, (0,)).model_copy(update={"deepgemm": form, "arguments": EXPERTS})
        for job in (partial(trace, asked, 0), partial(update, form, Result(CASE, own))):
            if run_forks([job]):
                sys.exit("a job has failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

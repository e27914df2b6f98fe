"""Update vLLM models whose weights have been prepared for DeepGEMM, as on Hopper and on Blackwell.

    python tests/vllm/deepgemm.py FOLDER

Leaves `CASE-FORM/report.json`. vLLM's own code requantizes, in torch. No kernel of DeepGEMM is run:
what multiplies is stood in for, and so is what lays scales out, which on Hopper returns them as
they are, and packs them on Blackwell (tests/runtime/test_deepgemm.py).
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
from tests.vllm.engines import derive, trace
from tests.vllm.results import Result
from tests.vllm.weight_update import TIMEOUT, addresses, refused, trainer, worker
from tranship.models.produce import Request, produce
from tranship.runtime.frameworks.tracing.config import architecture_of
from tranship.runtime.frameworks.tracing.forks import run_forks
from tranship.runtime.frameworks.tracing.request import DeepGemm
from tranship.runtime.frameworks.vllm.boot import build_model, prepare, register
from tranship.runtime.live import live_tensors
from tranship.schema.layouts import packed_scales

CASES = Case("qwen3_moe", True, 1, 1), Case("deepseek_v3", True, 1, 1)
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


def take_exponents(yes: bool) -> None:
    """Let vLLM read scales as exponents, or as they are."""
    quantization = "vllm.model_executor.layers.quantization.utils.fp8_utils"
    for name in ("vllm.utils.deep_gemm", quantization):
        vars(importlib.import_module(name)).update(is_deep_gemm_e8m0_used=lambda: yes)


def multiply(layer: Any, rows: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply by the weights that a layer holds for DeepGEMM, as a kernel of it would."""
    assert bias is None
    scales: Tensor = layer.weight_scale_inv
    if scales.dtype == torch.int32:
        exponents = scales.unsqueeze(-1) >> torch.arange(0, 32, 8) & 255
        scales = torch.exp2(exponents.flatten(-2).float() - 127)
    else:
        scales = scales.repeat_interleave(128, 0)
    shape = layer.weight.shape
    scales = scales.repeat_interleave(128, 1)[: shape[0], : shape[1]]
    return (rows.float() @ (layer.weight.float() * scales).T).to(rows.dtype)


def pretend(form: DeepGemm) -> None:
    """Let vLLM believe in DeepGEMM, and in the GPU that has scales of this form."""
    kernels: Any = importlib.import_module("vllm.utils.deep_gemm")
    take_exponents(True)
    lays_out = as_on_blackwell if form == "packed" else as_on_hopper
    kernels._transform_sf_into_required_layout_impl = lays_out
    # What vLLM asks its platform, which is a CPU here.
    torch.accelerator.synchronize = lambda: None


def prepared(model: Any, checkpoint: dict[str, Tensor]) -> Any:
    """Load a checkpoint, and prepare it for DeepGEMM, by vLLM's own code."""
    linear: Any = importlib.import_module("vllm.model_executor.kernels.linear")
    oracle: Any = importlib.import_module("vllm.model_executor.layers.fused_moe.oracle.fp8")
    utils: Any = importlib.import_module("vllm.model_executor.utils")
    model.load_weights(iter(checkpoint.items()))
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if hasattr(method, "fp8_linear"):
            kernel = linear.DeepGemmFp8BlockScaledMMKernel
            chosen = kernel.__new__(kernel)
            vars(chosen).update(use_deep_gemm_e8m0=True, is_deep_gemm_supported=True)
            if module.prefix.endswith("o_proj"):
                # What lets FlashInfer multiply small batches, and DeepGEMM the others.
                both = linear.FlashInferFp8DeepGEMMDynamicBlockScaledKernel
                deepgemm, chosen = chosen, both.__new__(both)
                vars(chosen).update(fallback=deepgemm)
            vars(method).update(fp8_linear=chosen, use_deep_gemm=True, apply=multiply)
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
    derive(model)
    return model


def update(form: DeepGemm, result: Result) -> None:
    """Send two versions in BF16 to an engine, and compare each with a fresh one."""
    pretend(form)
    model, engine = worker(result.folder)
    sources = result.case.request(result.folder, (0,)).sources

    def checkpoint(version: int) -> dict[str, Tensor]:
        return quantized(random_weights(sources, version, True), sources, "power_of_two")

    prepared(model, checkpoint(0))
    given = produce(Request(result.case.model, result.config, "checkpoint", {}, "bf16"))
    report: dict[str, Any] = {"wrong": [], "in place": []}
    with trainer(result, given) as (port, publish):
        files = {name: str(result.folder / f"{name}.json") for name in ("plan", "engine", "any")}
        text = Path(files["engine"]).read_text()
        Path(files["any"]).write_text(text.replace(', "scale_values": "power_of_two"', ""))
        info = {"plan": files["plan"], "manifest": files["engine"], "host": "127.0.0.1"}
        info |= {"port": port, "name": "refused", "timeout": TIMEOUT, "transport": "gloo"}
        report["any"] = refused(engine, info | {"manifest": files["any"]})
        read_as_they_are(model, True)
        report["as they are"] = refused(engine, info | {"manifest": files["any"]})
        read_as_they_are(model, False)
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


def read_as_they_are(model: Any, yes: bool) -> None:
    """Let kernels take scales as they are, as VLLM_USE_DEEP_GEMM_E8M0=0 does, or exponents."""
    take_exponents(not yes)
    for module in model.modules():
        kernel: Any = getattr(getattr(module, "quant_method", None), "fp8_linear", None)
        kernel = getattr(kernel, "fallback", kernel)
        if kernel is not None:
            kernel.use_deep_gemm_e8m0 = not yes


def differing(model: Any, fresh: Any) -> list[str]:
    """Name the parameters that differ between two models."""
    wanted = dict(fresh.named_parameters())
    held = dict(model.named_parameters())
    assert held.keys() == wanted.keys()
    return [name for name in held if not torch.equal(bits(held[name]), bits(wanted[name]))]


def main(folder: Path) -> None:
    """Run all."""
    jobs: list[tuple[Case, DeepGemm, Path]] = [
        (case, form, folder / f"{case.model}-{form}") for case in CASES for form in FORMS
    ]
    for case, _, own in jobs:
        own.mkdir()
        case.write(own)
    first, *others = dict.fromkeys(architecture_of(own) for *_, own in jobs)
    prepare(first)
    for other in others:
        register(other)
    torch.set_num_threads(1)
    for case, form, own in jobs:
        changes = {"deepgemm": form, "arguments": EXPERTS}
        asked = case.request(own, (0,)).model_copy(update=changes)
        for job in (partial(trace, asked, 0), partial(update, form, Result(case, own))):
            if run_forks([job]):
                sys.exit("a job has failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

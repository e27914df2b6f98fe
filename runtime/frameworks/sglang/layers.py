"""Which layers of an SGLang engine keep their weights as a checkpoint has them (SGLang 0.5.23).

After every update SGLang runs `process_weights_after_loading` of each layer's quantization method.
Where that replaces, transposes or repacks parameters, a plan cannot write into them in place, and
what it wrote would be processed once more. The methods that are let through change nothing, unless
an option asks for it: this was seen on H100 for all of them, parameter by parameter.
"""

import importlib
from collections import defaultdict
from collections.abc import Container, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tranship.runtime.live import parameters_called, submodules
from tranship.schema.diagnostics import Diagnostic, Location
from tranship.schema.layouts import PACKED_BLOCK, POST_PROCESSED

_UNTOUCHED = frozenset(
    {
        "BaseKVCacheMethod",
        "Fp8KVCacheMethod",
        "UnquantizedEmbeddingMethod",
        "UnquantizedFusedMoEMethod",
        "UnquantizedLinearMethod",
    }
)
_BY_BLOCKS = frozenset({"Fp8LinearMethod", "Fp8MoEMethod"})

_REQUANTIZED = "codes and scales are requantized to powers of two and packed for DeepGEMM"

_RUNNER = "deepgemm_w8a8_block_fp8_linear_with_fallback"
"""What runs linear layers by DeepGEMM, as SGLang has chosen when it built them."""

_SHOWN = 3
"""Most layers that are named for one reason."""


def find_unfit(
    model: nn.Module, where: Location, packed: Container[str] = ()
) -> tuple[Diagnostic, ...]:
    """Report layers whose weights are not as they are declared (TS871), once per reason.

    `packed` are the names of the scales that are declared as packed for DeepGEMM; all other weights
    are declared as a checkpoint has them.
    """
    # Latent attention holds a projection under two names once it has computed.
    declared = parameters_called(model, packed)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path, module in submodules(model):
        reason = _reason(module)
        if reason is None and not {id(scale) for scale in _packed(module)} <= declared:
            reason = _REQUANTIZED
        if reason is not None:
            found[reason].append(".".join(path))
    return tuple(_unfit(reason, names, where) for reason, names in found.items())


def find_requantized(model: nn.Module) -> frozenset[str]:
    """Name the codes that SGLang requantizes for DeepGEMM on Blackwell, as it decides it itself.

    The model is one that was built `on_blackwell`, and SGLang is asked as if it were there
    (fp8_utils.py, requant_block_scale_ue8m0_for_deepgemm).
    """
    with on_blackwell():
        return frozenset(
            ".".join((*path, name))
            for path, module in submodules(model)
            for name in _requantized(module)
        )


def find_layouts(model: nn.Module) -> dict[str, str]:
    """Return the layouts of parameters that do not stay as they were loaded, by name."""
    return {
        ".".join((*path, name)): POST_PROCESSED
        for path, module in submodules(model)
        if _reason(module) is not None
        for name, _ in module.named_parameters(recurse=False)
    }


@contextmanager
def on_blackwell() -> Generator[None]:
    """Let SGLang take DeepGEMM for installed, and the GPU for one that has scales packed for it."""
    wrapper: Any = importlib.import_module("sglang.srt.layers.deep_gemm_wrapper")
    before = wrapper.ENABLE_JIT_DEEPGEMM, wrapper.DEEPGEMM_SCALE_UE8M0
    wrapper.ENABLE_JIT_DEEPGEMM = wrapper.DEEPGEMM_SCALE_UE8M0 = True
    try:
        yield
    finally:
        wrapper.ENABLE_JIT_DEEPGEMM, wrapper.DEEPGEMM_SCALE_UE8M0 = before


def _requantized(module: nn.Module) -> Iterator[str]:
    """Name the codes of one layer that SGLang requantizes."""
    method: Any = getattr(module, "quant_method", None)
    name = type(method).__name__
    if name not in _BY_BLOCKS or _reason(module) is not None:
        return
    utils: Any = importlib.import_module("sglang.srt.model_loader.utils")
    block = method.quant_config.weight_block_size
    of_experts = name == "Fp8MoEMethod"
    if of_experts and not method.is_deepgemm_moe_runner_backend_enabled():
        return
    if not of_experts and getattr(method.w8a8_block_fp8_linear, "__name__", "") != _RUNNER:
        return
    for key in ("w13_weight", "w2_weight") if of_experts else ("weight",):
        shape = getattr(module, key).shape[-2:]
        dtype = torch.bfloat16 if of_experts else getattr(module, "orig_dtype", None)
        if block == [PACKED_BLOCK] * 2 and utils.should_deepgemm_weight_requant_ue8m0(
            block, dtype, shape, grouped_moe=of_experts
        ):
            yield key


def _packed(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield a layer's scales that SGLang has packed."""
    for scale in module.parameters(recurse=False):
        if getattr(scale, "format_ue8m0", False):
            yield scale


def _unfit(reason: str, names: list[str], where: Location) -> Diagnostic:
    more = len(names) - _SHOWN
    advice = "serve BF16, or a checkpoint in FP8 by blocks, in a layout that SGLang keeps"
    if reason == _REQUANTIZED:
        advice = "trace the engine with --deepgemm packed, and compile the plan again"
    shown = ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return Diagnostic(
        code="TS871",
        message=f"{reason}: {shown}",
        at=where,
        help=advice,
    )


def _reason(module: nn.Module) -> str | None:
    """Say what SGLang makes of a layer's weights, or None if it leaves them alone."""
    if getattr(module, "use_intel_amx_backend", False):
        return "weights are repacked for AMX"
    method: Any = getattr(module, "quant_method", None)
    # Others have an attribute of this name too, such as a text.
    if not hasattr(method, "process_weights_after_loading"):
        return None
    if getattr(module, "_mega_moe_weights_built", False):
        return "experts are interleaved for the kernels of mega MoE"
    name = type(method).__name__
    if name in _UNTOUCHED:
        return next(_reasons_of_experts(method), None)
    if name not in _BY_BLOCKS:
        return f"nothing is known of what {name} makes of weights"
    return next(_reasons_of_fp8(method), None)


def _reasons_of_experts(method: Any) -> Iterator[str]:
    if getattr(method, "use_flashinfer_trtllm_moe", False):
        yield "experts are laid out in blocks for TensorRT-LLM's kernels"
    # In place, and of the same shape: nothing else tells.
    if getattr(method, "w13_swiglu_interleaved", False):
        yield "rows of gates and up projections are interleaved"


def _reasons_of_fp8(method: Any) -> Iterator[str]:
    if not method.quant_config.is_checkpoint_fp8_serialized:
        yield "weights are quantized to FP8 after they were loaded, into new tensors"
    if not method.block_quant:
        yield "weights in FP8 per tensor are transposed and their scales replaced"
    if method.use_mxfp8:
        yield "scales in MXFP8 are laid out anew"
    if getattr(method, "is_fp4_expert", False):
        yield "experts in FP4 are laid out anew"
    if getattr(method, "use_marlin", False):
        yield "weights are repacked for Marlin"
    if getattr(method, "block_fp8_as_mxfp8", False):
        yield "scales are kept in MXFP8 a second time"

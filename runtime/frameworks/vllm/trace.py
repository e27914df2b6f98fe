"""Trace what a vLLM engine's ranks hold.

python -m tranship.runtime.frameworks.vllm.trace REQUEST
"""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import torch

from tranship.runtime.frameworks.tracing.config import architecture_of
from tranship.runtime.frameworks.tracing.declare import CONSTANTS
from tranship.runtime.frameworks.tracing.ranks import Code, main
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.runtime.frameworks.vllm.boot import Place, boot, build_model, prepare
from tranship.runtime.frameworks.vllm.recipes import find_derivations
from tranship.runtime.live import submodules
from tranship.schema.manifest import Axis

_SCALE = "a scale of the cache, which the checkpoint has not"

UNTOUCHED: Mapping[str, str] = {
    **CONSTANTS,
    **dict.fromkeys(("_q_scale", "_k_scale", "_v_scale", "_prob_scale"), _SCALE),
    **dict.fromkeys(("_k_scale_cpu", "_v_scale_cpu"), _SCALE),
    "_expert_map": "which experts a rank holds follows from the ranks",
}
"""Why no update changes a tensor, by the last part of its name (layers/attention/attention.py)."""

PASSING = frozenset({"kv_cache", "q_scale", "k_scale", "v_scale", "prob_scale"})
"""The cache, empty until the engine sizes it, and what `process_weights_after_loading` makes the
attention's scales of, and removes (layers/quantization/kv_cache.py)."""


def build(request: TraceRequest, rank: int) -> Any:
    """Become a rank, and build its model on the meta device."""
    config = boot(request.folder, _place(request, rank), request.arguments)
    return build_model(config, "meta")


def _place(request: TraceRequest, rank: int) -> Place:
    return Place(request.tp, request.ep > 1, rank)


def _axes(request: TraceRequest) -> tuple[Axis, ...]:
    return _place(request, 0).axes()


def _options(request: TraceRequest) -> Mapping[str, int | bool | str]:
    ranks = {"tensor_parallel_size": request.tp, "enable_expert_parallel": request.ep > 1}
    return {**ranks, **request.arguments}


def _requantized(model: Any, request: TraceRequest) -> frozenset[str]:
    """Name the codes that vLLM lets DeepGEMM read: of linear layers, and of experts if told to."""
    kernels: Any = importlib.import_module("vllm.utils.deep_gemm")
    found: set[str] = set()
    for path, module in submodules(model):
        method: Any = getattr(module, "quant_method", None)
        kind = type(method).__name__
        if kind == "Fp8LinearMethod" and method.block_quant:
            weight: Any = module.weight
            if kernels.should_use_deepgemm_for_fp8_linear(torch.bfloat16, weight.shape, True):
                found.add(".".join((*path, "weight")))
        elif kind == "Fp8MoEMethod" and request.arguments.get("moe_backend") == "deep_gemm":
            found |= {".".join((*path, name)) for name in ("w13_weight", "w2_weight")}
    return frozenset(found)


VLLM = Code(
    title="vLLM",
    package="vllm",
    module="tranship.runtime.frameworks.vllm.trace",
    prepare=lambda request: prepare(architecture_of(request.folder)),
    build=build,
    axes=_axes,
    options=_options,
    constants=UNTOUCHED,
    passing=PASSING,
    derivations=find_derivations,
    requantized=_requantized,
)

if __name__ == "__main__":
    main(VLLM, *sys.argv[1:])

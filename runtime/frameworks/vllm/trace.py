"""Trace what a vLLM engine's ranks hold.

python -m tranship.runtime.frameworks.vllm.trace REQUEST
"""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from tranship.runtime.frameworks.tracing.config import architecture_of, model_type_of
from tranship.runtime.frameworks.tracing.declare import CONSTANTS
from tranship.runtime.frameworks.tracing.ranks import Code, main
from tranship.runtime.frameworks.tracing.request import TraceRequest
from tranship.runtime.frameworks.vllm.boot import Place, boot, build_model, prepare
from tranship.runtime.frameworks.vllm.recipes import find_derivations, multiply_by_deepgemm
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
    model = build_model(config, "meta")
    if "moe_backend" in request.arguments:
        _require_whole_blocks(model)
    if request.deepgemm is not None:
        multiply_by_deepgemm(model)
    return model


def _require_whole_blocks(model: Any) -> None:
    """Make sure that all experts are loaded as they would be for any kernel.

    Of shards that are no whole blocks vLLM pads some, and others get finer blocks, as kernels want
    it (fused_moe/oracle/fp8.py, resolve_fp8_moe_weight_block_shape).

    Raises:
        ValueError: they are not.
    """
    for path, module in submodules(model):
        method: Any = getattr(module, "quant_method", None)
        if type(method).__name__ == "Fp8MoEMethod" and method.block_quant:
            weight: Any = module.w2_weight
            if any(weight.shape[-1] % size for size in method.weight_block_size):
                name, columns = ".".join(path), weight.shape[-1]
                message = f"{name} has {columns} columns, no whole blocks: leave moe_backend out"
                raise ValueError(message)


def _place(request: TraceRequest, rank: int) -> Place:
    return Place(request.tp, request.ep > 1, rank)


def _axes(request: TraceRequest) -> tuple[Axis, ...]:
    return _place(request, 0).axes()


def _options(request: TraceRequest) -> Mapping[str, int | bool | str]:
    ranks = {"tensor_parallel_size": request.tp, "enable_expert_parallel": request.ep > 1}
    return {**ranks, **request.arguments}


_BLACKWELL = 100
"""The family of GPUs with packed scales, as vLLM numbers them."""


def _requantized(model: Any, request: TraceRequest) -> frozenset[str]:
    """Name the codes that vLLM lets DeepGEMM read on Blackwell.

    They are those of linear layers, unless another backend is asked for, and of experts if this one
    is.
    """
    linear = request.arguments.get("linear_backend", "auto") in ("auto", "deep_gemm")
    experts = request.arguments.get("moe_backend") == "deep_gemm"
    model_type = model_type_of(request.folder)
    found: set[str] = set()
    for path, module in submodules(model):
        method: Any = getattr(module, "quant_method", None)
        kind = type(method).__name__
        if kind == "Fp8LinearMethod" and linear and method.block_quant:
            if _is_for_deepgemm(module, model_type):
                found.add(".".join((*path, "weight")))
        elif kind == "Fp8MoEMethod" and experts:
            found |= {".".join((*path, name)) for name in ("w13_weight", "w2_weight")}
    return frozenset(found)


def _is_for_deepgemm(layer: Any, model_type: str) -> bool:
    """Whether vLLM chooses DeepGEMM for a linear layer (kernels/linear/scaled_mm/deep_gemm.py)."""
    kernels: Any = importlib.import_module("vllm.utils.deep_gemm")
    families = kernels._DEEPGEMM_BLACKWELL_EXCLUDED_MODEL_TYPES.get(model_type, ())
    shape = layer.weight.shape
    fits = kernels.should_use_deepgemm_for_fp8_linear(layer.orig_dtype, shape, True)
    return fits and _BLACKWELL not in families


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

"""Which layers of a vLLM model keep their weights as `load_weights` has left them.

An update that writes the checkpoint's layout is right only where a kernel reads that layout. A
layer that has moved its weights about may still hold tensors of the same shapes, so layers are
known by name, from vLLM 0.33.0's `process_weights_after_loading`; all others are refused. vLLM
calls that of a layer's method of quantization, of attention, and of the model itself
(model_loader/utils.py).
"""

import importlib
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

from torch import nn

from tranship.runtime.live import parameters_called, submodules
from tranship.schema.diagnostics import Diagnostic, Location

_DEEPGEMM = "DeepGemmFp8BlockScaledMMKernel"
_WITH_DEEPGEMM = "FlashInferFp8DeepGEMMDynamicBlockScaledKernel"
_DEEPGEMMS = ("DEEPGEMM", "BATCHED_DEEPGEMM")
"""What lets DeepGEMM multiply: by linear layers, by those of which FlashInfer multiplies the small
batches, and by experts."""


def _always(_: Any) -> bool:
    return True


def _fp8_linear(method: Any) -> bool:
    kernels = ("CutlassFp8BlockScaledMMKernel", "TritonFp8BlockScaledMMKernel", _DEEPGEMM)
    return type(_preparing(method.fp8_linear)).__name__ in kernels


def _preparing(kernel: Any) -> Any:
    """Return the kernel that prepares the weights, if one stands for two."""
    return kernel.fallback if type(kernel).__name__ == _WITH_DEEPGEMM else kernel


def _experts(method: Any) -> bool:
    return method.unquantized_backend.name in ("TRITON", "BATCHED_TRITON")


def _fp8_experts(method: Any) -> bool:
    backends = ("TRITON", "BATCHED_TRITON", "VLLM_CUTLASS", "BATCHED_VLLM_CUTLASS", *_DEEPGEMMS)
    return method.block_quant and method.fp8_backend.name in backends


KEEPING: Mapping[str, Callable[[Any], bool]] = {
    "UnquantizedLinearMethod": _always,
    "UnquantizedEmbeddingMethod": _always,
    "UnquantizedFusedMoEMethod": _experts,
    "Fp8LinearMethod": _fp8_linear,
    "Fp8MoEMethod": _fp8_experts,
    "Fp8KVCacheMethod": _always,
}
"""Methods that may keep weights as they are, and when they do.

On ROCm and XPU they pad or transpose, which binding finds; on a CPU they pack, which leaves a
`cpu_linear`.
"""


_HOOK = "process_weights_after_loading"


def _keeps_nothing(attention: Any) -> bool:
    """Whether kernels of attention keep nothing of the weights; some have a copy of the sinks."""
    return all(
        _hook(kernel).startswith("AttentionImplBase.")
        or getattr(kernel, "_sinks_source", kernel) is None
        for kernel in attention.impl.get_impl_variants()
    )


def _hook(owner: object) -> str:
    """Name the function that an object has for what comes after loading; nothing if it has none."""
    return str(getattr(getattr(owner, _HOOK, None), "__qualname__", ""))


HOOKED: Mapping[str, Callable[[Any], bool]] = {
    f"Attention.{_HOOK}": _keeps_nothing,
    # What it makes of weights is declared, or binding refuses it.
    f"MLAAttention.{_HOOK}": _keeps_nothing,
    f"MMEncoderAttention.{_HOOK}": lambda attention: not attention.fp8_enabled,
}
"""Modules with such a function of their own that may keep weights as they are, and when they do."""


def find_reworked(
    model: nn.Module, where: Location, powers_of_two: Container[str] = ()
) -> Iterator[Diagnostic]:
    """Report the layers that do not keep their weights, or of which it is not known (TS880).

    `powers_of_two` are the names of the codes whose scales are declared as such. DeepGEMM takes
    others for exponents alone; whether it holds them packed is seen when they are bound.
    """
    declared = parameters_called(model, powers_of_two)
    for path, module in submodules(model):
        if path[-1:] == ("quant_method",):
            continue  # some methods are modules, and looked at with their layers
        name = ".".join(path) or "the model"
        for kind in _reworking(module):
            message = f"{name} may hold its weights in a layout of its own: {kind}"
            advice = "choose backends that read the checkpoint's layout, such as triton"
            yield Diagnostic("TS880", message, where, help=advice)
        for key in _requantized(module):
            if id(getattr(module, key)) not in declared:
                message = f"{name}.{key} is read by DeepGEMM with scales that are powers of two"
                advice = "trace the engine with --deepgemm power_of_two, or packed on Blackwell"
                yield Diagnostic("TS880", message, where, help=advice)


def _requantized(module: Any) -> Iterator[str]:
    """Name a layer's codes that vLLM has requantized to scales that are powers of two."""
    method: Any = getattr(module, "quant_method", None)
    kind = type(method).__name__
    if kind == "Fp8LinearMethod" and method.block_quant:
        kernel = _preparing(method.fp8_linear)
        if type(kernel).__name__ == _DEEPGEMM and kernel.use_deep_gemm_e8m0:
            yield "weight"
    elif kind == "Fp8MoEMethod" and method.fp8_backend.name in _DEEPGEMMS:
        kernels: Any = importlib.import_module("vllm.utils.deep_gemm")
        if kernels.is_deep_gemm_e8m0_used():
            yield from ("w13_weight", "w2_weight")


def _reworking(module: Any) -> Iterator[str]:
    """Name what may have reworked a module's weights."""
    method = getattr(module, "quant_method", None)
    if method is not None:
        kind = type(method).__name__
        packed = hasattr(module, "cpu_linear")
        if packed or kind not in KEEPING or not KEEPING[kind](method):
            yield kind
    hook = _hook(module)
    if hook and (hook not in HOOKED or not HOOKED[hook](module)):
        yield hook

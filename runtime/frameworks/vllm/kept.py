"""Which layers of a vLLM model keep their weights as `load_weights` has left them.

An update that writes the checkpoint's layout is right only where a kernel reads that layout. A
layer that has moved its weights about may still hold tensors of the same shapes, so layers are
known by name, from vLLM 0.33.0's `process_weights_after_loading`; all others are refused. vLLM
calls that of a layer's method of quantization, of attention, and of the model itself
(model_loader/utils.py).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from tranship.runtime.live import submodules
from tranship.schema.diagnostics import Diagnostic, Location


def _always(_: Any) -> bool:
    return True


def _fp8_linear(method: Any) -> bool:
    kernels = ("CutlassFp8BlockScaledMMKernel", "TritonFp8BlockScaledMMKernel")
    return type(method.fp8_linear).__name__ in kernels


def _experts(method: Any) -> bool:
    return method.unquantized_backend.name in ("TRITON", "BATCHED_TRITON")


def _fp8_experts(method: Any) -> bool:
    backends = ("TRITON", "BATCHED_TRITON", "VLLM_CUTLASS", "BATCHED_VLLM_CUTLASS")
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


def find_reworked(model: nn.Module, where: Location) -> Iterator[Diagnostic]:
    """Report the layers that do not keep their weights, or of which it is not known (TS880)."""
    for path, module in submodules(model):
        if path[-1:] == ("quant_method",):
            continue  # some methods are modules, and looked at with their layers
        for kind in _reworking(module):
            name = ".".join(path) or "the model"
            message = f"{name} may hold its weights in a layout of its own: {kind}"
            advice = "choose backends that read the checkpoint's layout, such as triton"
            yield Diagnostic("TS880", message, where, help=advice)


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

"""Which layers of a vLLM model keep their weights as `load_weights` has left them.

An update that writes the checkpoint's layout is right only where a kernel reads that layout. A
layer that has moved its weights about may still hold tensors of the same shapes, so layers are
known by name, from vLLM 0.33.0's `process_weights_after_loading`; all others are refused.
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


def find_reworked(model: nn.Module, where: Location) -> Iterator[Diagnostic]:
    """Report the layers that do not keep their weights, or of which it is not known (TS880)."""
    for path, module in submodules(model):
        method: Any = getattr(module, "quant_method", None)
        if method is None:
            continue
        kind = type(method).__name__
        packed = hasattr(module, "cpu_linear")
        if packed or kind not in KEEPING or not KEEPING[kind](method):
            message = f"{'.'.join(path)} may hold its weights in a layout of its own: {kind}"
            advice = "choose backends that read the checkpoint's layout, such as triton"
            yield Diagnostic("TS880", message, where, help=advice)

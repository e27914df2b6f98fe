"""Stand-ins for `sgl_kernel`, SGLang's compiled kernels, on machines that have a GPU but not them.

Those that the models of these tests call are written in torch. The rest can be imported, and raise
when they are called. What is compared is one model with another on the same kernels.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def rmsnorm(
    input: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    out: Tensor | None = None,
    enable_pdl: bool | None = None,
) -> Tensor:
    """Divide rows by the root of their mean square, and scale them."""
    del enable_pdl
    values = input.float()
    mean = values.square().mean(-1, keepdim=True)
    normed = (values * torch.rsqrt(mean + eps) * weight.float()).to(input.dtype)
    return normed if out is None else out.copy_(normed)


def fused_add_rmsnorm(
    input: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    enable_pdl: bool | None = None,
) -> None:
    """Add `input` to the residual, and put its norm into `input`."""
    del enable_pdl
    residual.add_(input)
    rmsnorm(residual, weight, eps, out=input)


def moe_sum_reduce(input: Tensor, output: Tensor, routed_scaling_factor: float = 1.0) -> None:
    """Add up what a token's experts made of it."""
    output.copy_(input.float().sum(1) * routed_scaling_factor)


def moe_align_block_size(*arguments: object) -> None:
    """Sort tokens by expert, with a kernel of SGLang's own that is compiled when it is needed."""
    importlib.import_module("sglang.kernels.ops.moe.moe_align").moe_align_block_size(*arguments)


KERNELS: dict[str, Callable[..., object]] = {
    "fused_add_rmsnorm": fused_add_rmsnorm,
    "moe_align_block_size": moe_align_block_size,
    "moe_sum_reduce": moe_sum_reduce,
    "rmsnorm": rmsnorm,
}


class Kernels(ModuleType):
    """A module in which every kernel exists: capitalized names are classes."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: object, **__: object) -> object:
            raise NotImplementedError(f"no stand-in for sgl_kernel.{name}")

        return type(name, (), {}) if name[:1].isupper() else missing


def install() -> None:
    """Let `sgl_kernel` be imported, if it is not installed."""
    if importlib.util.find_spec("sgl_kernel") is not None:
        return
    module: Any = Kernels("sgl_kernel")
    module.__spec__ = ModuleSpec("sgl_kernel", None, is_package=True)
    module.__path__ = []
    module.__version__ = "99"
    for name, kernel in KERNELS.items():
        setattr(module, name, kernel)
    sys.modules["sgl_kernel"] = module

"""What Megatron-core 0.16.1 calls of CUDA and Transformer Engine to build a model, replaced.

Only the processes of the tests' ranks call this; no part of tranship needs it.
"""

import importlib
from typing import Any

import torch


def build_without_gpu() -> None:
    """Let Megatron-core build models in this process, which has neither a GPU nor its packages."""
    cuda: Any = torch.cuda
    tensor: Any = torch.Tensor
    # The router puts its buffers on the current device, and latent attention its rotary tables.
    cuda.current_device = lambda: "cpu"
    # The first and last stage add up their copies of a tied embedding on the GPU.
    tensor.cuda = _stay
    latent: Any = importlib.import_module("megatron.core.transformer.multi_latent_attention")
    # Latent attention asks whether its layers are Transformer Engine's, which is None without it.
    latent.TELinear = latent.TEColumnParallelLinear = _Never
    latent.TELayerNormColumnParallelLinear = _Never
    attention: Any = importlib.import_module("megatron.core.transformer.dot_product_attention")
    plain = attention.DotProductAttention.__init__

    def take_channels(self: Any, *args: Any, **given: Any) -> None:
        # Latent attention gives sizes of keys and values that only Transformer Engine's takes.
        plain(self, *args, **{key: given[key] for key in given if not key.endswith("_channels")})

    attention.DotProductAttention.__init__ = take_channels


def _stay(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class _Never:
    """A class without instances."""

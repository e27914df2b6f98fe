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
    tensor.cuda = lambda self: self
    latent: Any = importlib.import_module("megatron.core.transformer.multi_latent_attention")
    # Latent attention asks whether its layers are Transformer Engine's, which is None without it.
    latent.TELinear = latent.TEColumnParallelLinear = _Never
    latent.TELayerNormColumnParallelLinear = _Never
    attention: Any = importlib.import_module("megatron.core.transformer.dot_product_attention")
    plain = attention.DotProductAttention.__init__

    def take_channels(self: Any, *args: Any, **given: Any) -> None:
        # Latent attention gives sizes of keys and values that only Transformer Engine's takes.
        given.pop("k_channels", None), given.pop("v_channels", None)
        plain(self, *args, **given)

    attention.DotProductAttention.__init__ = take_channels


class _Never:
    """A class without instances."""

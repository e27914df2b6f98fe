"""What Megatron-core 0.16.1 calls of CUDA to build a model, replaced; on GPUs leave it out."""

from typing import Any

import torch


def build_without_gpu() -> None:
    """Let Megatron-core build models in this process, which has no GPU."""
    cuda: Any = torch.cuda
    # The router puts its buffers on the current device.
    cuda.current_device = lambda: "cpu"

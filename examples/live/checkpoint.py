"""The checkpoint that an engine would be given instead of an update; nothing of tranship is in it.

Weights are gathered from the trainer, whole, and quantized by plain torch.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, LARGEST, FLOOR = 128, 448.0, 1e-4


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize [rows, columns]: codes in e4m3, and a float32 scale for each 128 x 128 block.

    A scale is the block's largest absolute value by 448, as CUDA computes it: times the float32
    reciprocal.
    """
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    down, across = padded.shape[0] // BLOCK, padded.shape[1] // BLOCK
    blocks = padded.reshape(down, BLOCK, across, BLOCK)
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(min=FLOOR)
    scales = amax * torch.tensor(1 / LARGEST, dtype=torch.float32)
    codes = (blocks / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    codes = codes.reshape(padded.shape)[:rows, :columns]
    return codes.contiguous(), scales.reshape(down, across)


def write_quantized(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a checkpoint in FP8: projections as codes and scales, all else as it is."""
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            found[name], found[f"{name}_scale_inv"] = quantize(weight)
        else:
            found[name] = weight.contiguous()
    importlib.import_module("safetensors.torch").save_file(found, path)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    return importlib.import_module("safetensors.torch").load_file(path)

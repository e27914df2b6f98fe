"""The independent reference: a gathered checkpoint, quantized whole, cut as a loader would.

Nothing here knows of manifests or plans. It says what every buffer of an engine rank must hold.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tranship.demo.config import BLOCK, TP_SIZE, ModelConfig

LARGEST = 448.0
FLOOR = 1e-4


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize [rows, columns] in 128 x 128 blocks: codes, and one float32 scale per block.

    The formula is SGLang's for block FP8, with the scale as CUDA computes it: a product with the
    float32 reciprocal of 448.
    """
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    down, across = padded.shape[0] // BLOCK, padded.shape[1] // BLOCK
    tiles = padded.reshape(down, BLOCK, across, BLOCK)
    amax = tiles.abs().amax(dim=(1, 3), keepdim=True).clamp(min=FLOOR)
    scale = amax * torch.tensor(1 / LARGEST, dtype=torch.float32)
    codes = (tiles / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes.reshape(padded.shape)[:rows, :columns], scale.reshape(down, across)


def expected(config: ModelConfig, checkpoint: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return what every parameter of engine rank `rank` must hold, by name."""
    result = {"model.norm.weight": checkpoint["model.norm.weight"]}
    rows = config.padded_vocab_size // TP_SIZE
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        padding = config.padded_vocab_size - config.vocab_size
        result[name] = F.pad(checkpoint[name], (0, 0, 0, padding)).narrow(0, rank * rows, rows)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        result |= _attention(checkpoint, f"{prefix}.self_attn", rank)
        result |= _experts(config, checkpoint, f"{prefix}.mlp", rank)
        for name in ("input_layernorm", "post_attention_layernorm", "mlp.gate"):
            key = f"{prefix}.{name}.weight"
            result[key] = checkpoint[key]
    return result


def _attention(checkpoint: Mapping[str, Tensor], prefix: str, rank: int) -> dict[str, Tensor]:
    parts = [quantize(checkpoint[f"{prefix}.{name}_proj.weight"]) for name in ("q", "k", "v")]
    output = quantize(checkpoint[f"{prefix}.o_proj.weight"])
    result = {
        f"{prefix}.qkv_proj.weight": _stack([_share(codes, 0, rank) for codes, _ in parts]),
        f"{prefix}.qkv_proj.weight_scale_inv": _stack([_share(s, 0, rank) for _, s in parts]),
        f"{prefix}.o_proj.weight": _share(output[0], 1, rank),
        f"{prefix}.o_proj.weight_scale_inv": _share(output[1], 1, rank),
    }
    for name in ("q_norm", "k_norm"):
        result[f"{prefix}.{name}.weight"] = checkpoint[f"{prefix}.{name}.weight"]
    return result


def _experts(
    config: ModelConfig, checkpoint: Mapping[str, Tensor], prefix: str, rank: int
) -> dict[str, Tensor]:
    names = [f"{prefix}.experts.{number}" for number in range(config.num_experts)]
    up = [
        [quantize(checkpoint[f"{name}.{part}.weight"]) for part in ("gate_proj", "up_proj")]
        for name in names
    ]
    down = [quantize(checkpoint[f"{name}.down_proj.weight"]) for name in names]
    result: dict[str, Tensor] = {}
    for place, suffix in enumerate(("weight", "weight_scale_inv")):
        w13 = [_stack([_share(part[place], 0, rank) for part in pair]) for pair in up]
        w2 = [_share(part[place], 1, rank) for part in down]
        result[f"{prefix}.experts.w13_{suffix}"] = _stack([w.unsqueeze(0) for w in w13])
        result[f"{prefix}.experts.w2_{suffix}"] = _stack([w.unsqueeze(0) for w in w2])
    return result


def _share(tensor: Tensor, dim: int, rank: int) -> Tensor:
    """One rank's equal share along a dim."""
    return tensor.chunk(TP_SIZE, dim=dim)[rank]


def _stack(parts: list[Tensor]) -> Tensor:
    """Concatenate along dim 0, byte for byte where the dtype cannot be concatenated."""
    if parts[0].dtype is torch.float8_e4m3fn:
        return torch.cat([part.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
    return torch.cat(parts)

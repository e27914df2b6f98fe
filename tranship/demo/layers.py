"""Arithmetic that trainer and engine share: norm, rotary positions, attention, routing."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tranship.demo.config import ModelConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dim, computed in float32."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (scaled * weight.float()).to(x.dtype)


def cos_sin_cache(config: ModelConfig, positions: int) -> Tensor:
    """Cosines and sines of the rotary angles, float32 [positions, head_dim]."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half).float() / half)
    angles = torch.outer(torch.arange(positions).float(), frequency)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, cache: Tensor) -> Tensor:
    """Rotate heads [batch, heads, positions, head_dim] by their positions."""
    cos, sin = cache[: x.shape[-2]].to(x.dtype).chunk(2, dim=-1)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of [batch, heads, positions, head_dim]; key heads are shared by groups."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def route(logits: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
    """Weights and numbers of the `chosen` experts of every token, weights summing to one."""
    weights, experts = torch.topk(logits.float().softmax(-1), chosen, dim=-1)
    return weights / weights.sum(-1, keepdim=True), experts

"""The engine's model: one tensor-parallel rank in SGLang's fused layout, linears in FP8.

Names, shapes and dtypes are those of SGLang 0.5.23 for Qwen3-MoE with block-quantized FP8:
`qkv_proj`, `o_proj`, `w13_weight`, `w2_weight`, each with its `weight_scale_inv`, an embedding and
a head whose vocabulary is padded and split. The arithmetic dequantizes, which is slow and plain.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tranship.demo.config import BLOCK, SEQUENCE, TP_SIZE, ModelConfig
from tranship.demo.layers import attend, cos_sin_cache, rms_norm, rotate, route

AllReduce = Callable[[Tensor], Tensor]


def codes(*shape: int) -> nn.Parameter:
    """FP8 codes; all bits set (NaN), so that what an update leaves out is seen."""
    raw = torch.full(shape, 0xFF, dtype=torch.uint8)
    return nn.Parameter(raw.view(torch.float8_e4m3fn), requires_grad=False)


def scales(*shape: int) -> nn.Parameter:
    """Scales of 128 x 128 blocks over the last two dims of `shape`, NaN before the first update."""
    blocks = (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))
    return nn.Parameter(torch.full(blocks, torch.nan), requires_grad=False)


def plain(*shape: int) -> nn.Parameter:
    """BF16 values, NaN before the first update."""
    return nn.Parameter(torch.full(shape, torch.nan, dtype=torch.bfloat16), requires_grad=False)


def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """Values of 128 x 128 blocks, in BF16."""
    wide = scale.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    return (weight.float() * wide[..., : weight.shape[-2], : weight.shape[-1]]).bfloat16()


class QuantizedLinear(nn.Module):
    """A linear held as FP8 codes and block scales."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = codes(rows, columns)
        self.weight_scale_inv = scales(rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the dequantized weight."""
        return F.linear(x, dequantize(self.weight, self.weight_scale_inv))


class Plain(nn.Module):
    """A module that is one BF16 weight."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = plain(*shape)


class Rotary(nn.Module):
    """The cache of rotary angles: a buffer that no update touches."""

    cos_sin_cache: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        cache = cos_sin_cache(config, SEQUENCE)
        self.register_buffer("cos_sin_cache", cache, persistent=False)


class EngineAttention(nn.Module):
    """This rank's query heads, with the keys and values that they need."""

    def __init__(self, config: ModelConfig, reduce: AllReduce) -> None:
        super().__init__()
        self.query, self.key = config.query_size // TP_SIZE, config.key_value_size // TP_SIZE
        self.head_dim, self.eps, self.reduce = config.head_dim, config.rms_norm_eps, reduce
        self.qkv_proj = QuantizedLinear(self.query + 2 * self.key, config.hidden_size)
        self.o_proj = QuantizedLinear(config.hidden_size, self.query)
        self.q_norm, self.k_norm = Plain(config.head_dim), Plain(config.head_dim)
        self.rotary_emb = Rotary(config)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over [batch, positions, hidden]."""
        parts = self.qkv_proj(x).split([self.query, self.key, self.key], dim=-1)
        query, key, value = (p.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in parts)
        cache = self.rotary_emb.cos_sin_cache
        query = rotate(rms_norm(query, self.q_norm.weight, self.eps), cache)
        key = rotate(rms_norm(key, self.k_norm.weight, self.eps), cache)
        return self.reduce(self.o_proj(attend(query, key, value).transpose(1, 2).flatten(2)))


class FusedExperts(nn.Module):
    """All experts' gate and up projections in one buffer, their down projections in another."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, hidden = config.num_experts, config.hidden_size
        inner = config.moe_intermediate_size // TP_SIZE
        self.w13_weight = codes(count, 2 * inner, hidden)
        self.w13_weight_scale_inv = scales(count, 2 * inner, hidden)
        self.w2_weight = codes(count, hidden, inner)
        self.w2_weight_scale_inv = scales(count, hidden, inner)

    def forward(self, x: Tensor, weights: Tensor, numbers: Tensor) -> Tensor:
        """Mix this rank's part of every expert."""
        w13 = dequantize(self.w13_weight, self.w13_weight_scale_inv)
        w2 = dequantize(self.w2_weight, self.w2_weight_scale_inv)
        result = torch.zeros_like(x)
        for number in range(len(w13)):
            gate, up = F.linear(x, w13[number]).chunk(2, dim=-1)
            share = (weights * (numbers == number)).sum(-1, keepdim=True)
            result = result + F.linear(F.silu(gate) * up, w2[number]) * share.to(x.dtype)
        return result


class EngineMoe(nn.Module):
    """The router and the fused experts."""

    def __init__(self, config: ModelConfig, reduce: AllReduce) -> None:
        super().__init__()
        self.chosen, self.reduce = config.num_experts_per_tok, reduce
        self.gate = Plain(config.num_experts, config.hidden_size)
        self.experts = FusedExperts(config)

    def forward(self, x: Tensor) -> Tensor:
        """Route and mix."""
        weights, numbers = route(F.linear(x, self.gate.weight), self.chosen)
        return self.reduce(self.experts(x, weights, numbers))


class EngineLayer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: ModelConfig, reduce: AllReduce) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.self_attn = EngineAttention(config, reduce)
        self.mlp = EngineMoe(config, reduce)
        self.input_layernorm = Plain(config.hidden_size)
        self.post_attention_layernorm = Plain(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [batch, positions, hidden]."""
        x = x + self.self_attn(rms_norm(x, self.input_layernorm.weight, self.eps))
        return x + self.mlp(rms_norm(x, self.post_attention_layernorm.weight, self.eps))


class EngineDecoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: ModelConfig, reduce: AllReduce) -> None:
        super().__init__()
        rows = config.padded_vocab_size // TP_SIZE
        self.embed_tokens = Plain(rows, config.hidden_size)
        self.layers = nn.ModuleList(
            EngineLayer(config, reduce) for _ in range(config.num_hidden_layers)
        )
        self.norm = Plain(config.hidden_size)


class EngineModel(nn.Module):
    """One rank of the engine; `forward` gives this rank's part of the padded vocabulary."""

    def __init__(self, config: ModelConfig, rank: int, reduce: AllReduce) -> None:
        super().__init__()
        self.config, self.rank, self.reduce = config, rank, reduce
        self.rows = config.padded_vocab_size // TP_SIZE
        self.model = EngineDecoder(config, reduce)
        self.lm_head = Plain(self.rows, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, positions, rows of this rank] of tokens [batch, positions]."""
        local = tokens - self.rank * self.rows
        mine = (local >= 0) & (local < self.rows)
        found = F.embedding(local.clamp(0, self.rows - 1), self.model.embed_tokens.weight)
        x = self.reduce(found * mine.unsqueeze(-1))
        for layer in self.model.layers:
            x = layer(x)
        x = rms_norm(x, self.model.norm.weight, self.config.rms_norm_eps)
        return F.linear(x, self.lm_head.weight)

"""The trainer's model: Qwen3-MoE in plain modules with the names of its checkpoint."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tranship.demo.config import SEQUENCE, ModelConfig
from tranship.demo.layers import attend, cos_sin_cache, rms_norm, rotate, route


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dim."""
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys."""

    cache: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(config.hidden_size, config.query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.key_value_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.key_value_size, bias=False)
        self.o_proj = nn.Linear(config.query_size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.register_buffer("cache", cos_sin_cache(config, SEQUENCE), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over [batch, positions, hidden]."""
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(self.q_norm(query), self.cache), rotate(self.k_norm(key), self.cache)
        return self.o_proj(attend(query, key, value).transpose(1, 2).flatten(2))


class Expert(nn.Module):
    """One gated feed-forward network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to tokens [count, hidden]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SparseMoe(nn.Module):
    """A router and its experts; every expert sees every token, weighted by the routing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.chosen = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the experts' outputs for [batch, positions, hidden]."""
        weights, numbers = route(self.gate(x), self.chosen)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            share = (weights * (numbers == number)).sum(-1, keepdim=True)
            result = result + expert(x) * share.to(x.dtype)
        return result


class DecoderLayer(nn.Module):
    """Attention and experts, each behind a norm and a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SparseMoe(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [batch, positions, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm: the `model.` part of the checkpoint's names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states of tokens [batch, positions]."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class TrainerModel(nn.Module):
    """The whole model; `forward` gives logits over the vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, positions, vocabulary] of tokens [batch, positions]."""
        return self.lm_head(self.model(tokens))

"""Random weights under the names and shapes that Hugging Face checkpoints have.

They are spelled out from transformers' `modeling_qwen3.py`, `modeling_qwen3_moe.py` and
`modeling_deepseek_v3.py`, and use nothing of tranship.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Config = dict[str, Any]
Weights = dict[str, Tensor]
Shape = tuple[int, ...]


def checkpoint(config: Config, seed: int = 0) -> Weights:
    """Every tensor of a model, whole: BF16, and float32 for the router's correction."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for name, shape in _shapes(config):
        size = 10.0 ** float(torch.randint(-3, 3, (), generator=generator))
        values = torch.randn(shape, generator=generator) * size
        weights[name] = values if name.endswith("correction_bias") else values.bfloat16()
    return weights


def _shapes(config: Config) -> Iterator[tuple[str, Shape]]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        attention = _latent_attention if "kv_lora_rank" in config else _attention
        for name, shape in attention(config):
            yield f"{prefix}.self_attn.{name}.weight", shape
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        for name, shape in _mlp(config, layer):
            yield f"{prefix}.mlp.{name}", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def _attention(config: Config) -> Iterator[tuple[str, Shape]]:
    hidden, size = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield from (("q_proj", (queries, hidden)), ("k_proj", (keys, hidden)))
    yield from (("v_proj", (keys, hidden)), ("o_proj", (hidden, queries)))
    yield from (("q_norm", (size,)), ("k_norm", (size,)))


def _latent_attention(config: Config) -> Iterator[tuple[str, Shape]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = (config[f"{part}_head_dim"] for part in ("qk_nope", "qk_rope", "v"))
    query_rank, key_rank = config["q_lora_rank"], config["kv_lora_rank"]
    yield "q_a_proj", (query_rank, hidden)
    yield "q_a_layernorm", (query_rank,)
    yield "q_b_proj", (heads * (nope + rope), query_rank)
    yield "kv_a_proj_with_mqa", (key_rank + rope, hidden)
    yield "kv_a_layernorm", (key_rank,)
    yield "kv_b_proj", (heads * (nope + value), key_rank)
    yield "o_proj", (hidden, heads * value)


def _mlp(config: Config, layer: int) -> Iterator[tuple[str, Shape]]:
    hidden, experts = config["hidden_size"], expert_count(config)
    if not experts or layer < config.get("first_k_dense_replace", 0):
        yield from _projections("", config["intermediate_size"], hidden)
        return
    yield "gate.weight", (experts, hidden)
    rows = config["moe_intermediate_size"]
    for expert in range(experts):
        yield from _projections(f"experts.{expert}.", rows, hidden)
    if shared := config.get("n_shared_experts", 0):
        yield "gate.e_score_correction_bias", (experts,)
        yield from _projections("shared_experts.", rows * shared, hidden)


def _projections(prefix: str, rows: int, hidden: int) -> Iterator[tuple[str, Shape]]:
    for part in ("gate", "up"):
        yield f"{prefix}{part}_proj.weight", (rows, hidden)
    yield f"{prefix}down_proj.weight", (hidden, rows)


def expert_count(config: Config) -> int:
    """Number of routed experts; 0 for a dense model."""
    return config.get("num_experts", config.get("n_routed_experts", 0))

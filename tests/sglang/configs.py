"""Small model configurations, and the tensors of their Hugging Face checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tranship.runtime.frameworks.tracing.scales import SCALE_SUFFIX
from tranship.runtime.frameworks.tracing.sources import on_meta
from tranship.schema.dtypes import DType
from tranship.schema.records import Ints

Config = dict[str, Any]
"""What a checkpoint's config.json holds."""

BLOCK = (128, 128)
"""Rows and columns that share a scale."""

_DENSE: Config = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}

_EXPERTS: Config = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 256,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

_FP8: Config = {
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": list(BLOCK),
    }
}

CONFIGS: dict[str, Config] = {
    "qwen3": _DENSE | _FP8,
    "qwen3_bf16": _DENSE,
    "qwen3_tied": _DENSE | _FP8 | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3_moe": _DENSE | _EXPERTS | _FP8,
    "qwen3_moe_tied": _DENSE | _EXPERTS | _FP8 | {"tie_word_embeddings": True},
}
"""By name. Hidden sizes are unequal multiples of the block; 1000 rows of vocabulary get padded.

`qwen3_tied` has fewer key-value heads than four ranks.
"""


def write_config(config: Config, folder: Path) -> None:
    """Write config.json into an existing folder."""
    (folder / "config.json").write_text(json.dumps(config))


def checkpoint_sources(config: Config) -> dict[str, tuple[DType, Ints]]:
    """Return dtype and shape of the checkpoint's tensors, scales of quantized weights included."""
    quantized = "quantization_config" in config
    found: dict[str, tuple[DType, Ints]] = {}
    for name, shape in _weights(config):
        if quantized and _is_quantized(name):
            grid = tuple(-(-size // by) for size, by in zip(shape, BLOCK, strict=True))
            found[name] = DType.F8E4M3FN, shape
            found[name + SCALE_SUFFIX] = DType.F32, grid
        else:
            found[name] = DType.BF16, shape
    return found


def checkpoint_tensors(config: Config) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors on the meta device."""
    return on_meta(checkpoint_sources(config))


def random_checkpoint(config: Config, seed: int) -> dict[str, torch.Tensor]:
    """Fill a checkpoint with random finite values: codes of any sign, scales above zero."""
    return random_values(checkpoint_tensors(config), seed)


def random_values(like: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Return random finite values in place of tensors: codes of any sign, scales above zero."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(tensor, generator) for name, tensor in like.items()}


def _random(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if like.dtype == torch.float8_e4m3fn:
        magnitude = torch.randint(0, 127, like.shape, generator=generator, dtype=torch.uint8)
        sign = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.uint8)
        return (magnitude + 128 * sign).view(torch.float8_e4m3fn)
    values = torch.randn(like.shape, generator=generator)
    return values.exp() if like.dtype == torch.float32 else values.to(like.dtype)


def _is_quantized(name: str) -> bool:
    return "_proj." in name


def _weights(config: Config) -> Iterator[tuple[str, Ints]]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield from _attention(f"{prefix}.self_attn", config)
        if "num_experts" in config:
            yield from _experts(f"{prefix}.mlp", config)
        else:
            yield from _mlp(f"{prefix}.mlp", hidden, config["intermediate_size"])


def _attention(prefix: str, config: Config) -> Iterator[tuple[str, Ints]]:
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield f"{prefix}.q_proj.weight", (queries, hidden)
    yield f"{prefix}.k_proj.weight", (keys, hidden)
    yield f"{prefix}.v_proj.weight", (keys, hidden)
    yield f"{prefix}.o_proj.weight", (hidden, queries)
    yield f"{prefix}.q_norm.weight", (head,)
    yield f"{prefix}.k_norm.weight", (head,)


def _mlp(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, Ints]]:
    yield f"{prefix}.gate_proj.weight", (inner, hidden)
    yield f"{prefix}.up_proj.weight", (inner, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, inner)


def _experts(prefix: str, config: Config) -> Iterator[tuple[str, Ints]]:
    yield f"{prefix}.gate.weight", (config["num_experts"], config["hidden_size"])
    for expert in range(config["num_experts"]):
        size = config["moe_intermediate_size"]
        yield from _mlp(f"{prefix}.experts.{expert}", config["hidden_size"], size)

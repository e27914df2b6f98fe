"""A Hugging Face checkpoint as the tensors of a Megatron-core model on one rank, in plain torch.

The query heads, the key and the value of a query group are neighbours in `linear_qkv`; `linear_fc1`
stacks gate and up; rows pad the vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.megatron.cases import Case, Config

Weights = dict[str, Tensor]


def whole_tensors(case: Case, weights: Weights) -> Weights:
    """Return every tensor of the whole model by its name in a model of plain torch layers."""
    config = case.config
    held = {
        "embedding.word_embeddings.weight": padded(
            weights["model.embed_tokens.weight"], case.vocabulary
        ),
        "decoder.final_layernorm.weight": weights["model.norm.weight"],
    }
    tied = config["tie_word_embeddings"]
    head = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
    held["output_layer.weight"] = padded(head, case.vocabulary)
    for layer in range(config["num_hidden_layers"]):
        for name, tensor in layer_tensors(config, weights, f"model.layers.{layer}"):
            held[f"decoder.layers.{layer}.{name}"] = tensor
    return held | (predictor(config, weights) if case.mtp else {})


def padded(tensor: Tensor, rows: int) -> Tensor:
    """Add rows of NaN."""
    filling = torch.full((rows - tensor.shape[0], tensor.shape[1]), float("nan"))
    return torch.cat([tensor, filling.to(tensor.dtype)])


def layer_tensors(config: Config, weights: Weights, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a transformer layer."""
    yield "input_layernorm.weight", weights[f"{source}.input_layernorm.weight"]
    yield "pre_mlp_layernorm.weight", weights[f"{source}.post_attention_layernorm.weight"]
    for name, tensor in attention(config, weights, f"{source}.self_attn"):
        yield f"self_attention.{name}", tensor
    if f"{source}.mlp.gate.weight" not in weights:
        yield from mlp(weights, f"{source}.mlp", "mlp")
        return
    yield "mlp.router.weight", weights[f"{source}.mlp.gate.weight"]
    if f"{source}.mlp.gate.e_score_correction_bias" in weights:
        yield "mlp.router.expert_bias", weights[f"{source}.mlp.gate.e_score_correction_bias"]
        yield from mlp(weights, f"{source}.mlp.shared_experts", "mlp.shared_experts")
    for expert in range(weights[f"{source}.mlp.gate.weight"].shape[0]):
        experts = f"mlp.experts.local_experts.{expert}"
        yield from mlp(weights, f"{source}.mlp.experts.{expert}", experts)


def attention(config: Config, weights: Weights, source: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an attention layer."""
    yield "linear_proj.weight", weights[f"{source}.o_proj.weight"]
    if "kv_lora_rank" in config:
        yield "linear_q_down_proj.weight", weights[f"{source}.q_a_proj.weight"]
        yield "q_layernorm.weight", weights[f"{source}.q_a_layernorm.weight"]
        yield "linear_q_up_proj.weight", weights[f"{source}.q_b_proj.weight"]
        yield "linear_kv_down_proj.weight", weights[f"{source}.kv_a_proj_with_mqa.weight"]
        yield "kv_layernorm.weight", weights[f"{source}.kv_a_layernorm.weight"]
        yield "linear_kv_up_proj.weight", weights[f"{source}.kv_b_proj.weight"]
        return
    yield "q_layernorm.weight", weights[f"{source}.q_norm.weight"]
    yield "k_layernorm.weight", weights[f"{source}.k_norm.weight"]
    for leaf in ("weight", "bias"):
        if f"{source}.q_proj.{leaf}" in weights:
            parts = [weights[f"{source}.{part}_proj.{leaf}"] for part in "qkv"]
            groups = config["num_key_value_heads"]
            grouped = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
            yield f"linear_qkv.{leaf}", torch.cat(grouped, dim=1).reshape(-1, *parts[0].shape[1:])


def mlp(weights: Weights, source: str, target: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a gated MLP."""
    gate, up = (weights[f"{source}.{part}_proj.weight"] for part in ("gate", "up"))
    yield f"{target}.linear_fc1.weight", torch.cat([gate, up])
    yield f"{target}.linear_fc2.weight", weights[f"{source}.down_proj.weight"]


def predictor(config: Config, weights: Weights) -> Weights:
    """Return the tensors of a layer that predicts one more token."""
    source, target = f"model.layers.{config['num_hidden_layers']}", "mtp.layers.0"
    held = {
        f"{target}.enorm.weight": weights[f"{source}.enorm.weight"],
        f"{target}.hnorm.weight": weights[f"{source}.hnorm.weight"],
        f"{target}.eh_proj.weight": weights[f"{source}.eh_proj.weight"],
        f"{target}.final_layernorm.weight": weights[f"{source}.shared_head.norm.weight"],
    }
    for name, tensor in layer_tensors(config, weights, source):
        held[f"{target}.transformer_layer.{name}"] = tensor
    return held

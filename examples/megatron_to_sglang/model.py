"""Build a rank's part of the model with Megatron-core, from config.json."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

VOCABULARY = 1024
"""Rows of the vocabulary with its padding: Megatron pads to a multiple of 128 x tp."""


def build(config: Mapping[str, Any], tp: int, ep: int) -> nn.Module:
    """Build the GPTModel of this rank in BF16; experts are whole, and spread over `ep` ranks.

    The process group is initialized.
    """
    state = megatron("parallel_state")
    state.initialize_model_parallel(
        tp, expert_model_parallel_size=ep, expert_tensor_parallel_size=1
    )
    transformer = megatron("transformer.transformer_config").TransformerConfig(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=config["num_attention_heads"],
        num_query_groups=config["num_key_value_heads"],
        kv_channels=config["head_dim"],
        num_moe_experts=config["num_experts"],
        moe_ffn_hidden_size=config["moe_intermediate_size"],
        moe_router_topk=config["num_experts_per_tok"],
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="allgather",
        tensor_model_parallel_size=tp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=1,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        qk_layernorm=True,
        add_bias_linear=False,
        bf16=True,
        params_dtype=torch.bfloat16,
        use_cpu_initialization=True,
    )
    spec = megatron("models.gpt.gpt_layer_specs").get_gpt_layer_local_spec(
        num_experts=config["num_experts"], qk_layernorm=True, normalization="RMSNorm"
    )
    model = megatron("models.gpt").GPTModel(
        transformer,
        spec,
        vocab_size=VOCABULARY,
        max_sequence_length=config["max_position_embeddings"],
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    )
    # As Megatron's training does; norms of plain torch are made in float32.
    return megatron("transformer.module").Float16Module(transformer, model)


def megatron(name: str) -> Any:
    """Return a module of Megatron-core."""
    return importlib.import_module(f"megatron.core.{name}")

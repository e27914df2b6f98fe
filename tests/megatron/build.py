"""Build a case's model with Megatron-core, and load it by Megatron's own attributes."""

import importlib
import re
from typing import Any

import torch
from torch import Tensor, nn

from tests.megatron.cases import Case
from tests.megatron.convert import Weights
from tests.megatron.transformer_engine import (
    Float8BlockwiseQTensor,
    group_experts,
    hold_in_blocks,
)
from tranship.runtime.live import submodules


def _import(name: str) -> Any:
    return importlib.import_module(f"megatron.core.{name}")


def parallel(case: Case) -> None:
    """Make this process a rank of the case; torch.distributed is initialized."""
    sizes = case.sizes
    _import("parallel_state").initialize_model_parallel(
        sizes.tp,
        sizes.pp,
        case.chunks if case.chunks > 1 else None,
        expert_model_parallel_size=sizes.ep,
        expert_tensor_parallel_size=sizes.etp,
    )


def configuration(case: Case) -> Any:
    """Return Megatron's configuration of the case's model."""
    config, sizes = case.config, case.sizes
    given: dict[str, Any] = {
        "num_layers": config["num_hidden_layers"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": config["num_attention_heads"],
        "tensor_model_parallel_size": sizes.tp,
        "pipeline_model_parallel_size": sizes.pp,
        "virtual_pipeline_model_parallel_size": case.chunks if case.chunks > 1 else None,
        "expert_model_parallel_size": sizes.ep,
        "expert_tensor_parallel_size": sizes.etp,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "normalization": "RMSNorm",
        "add_bias_linear": False,
        "add_qkv_bias": config["attention_bias"],
        "qk_layernorm": True,
        "bf16": True,
        "params_dtype": torch.bfloat16,
        "pipeline_dtype": torch.bfloat16,
        "use_cpu_initialization": True,
        "mtp_num_layers": 1 if case.mtp else None,
    }
    transformer = _import("transformer.transformer_config")
    given |= _experts(case)
    if "kv_lora_rank" not in config:
        heads = config["num_key_value_heads"]
        given |= {"num_query_groups": heads, "kv_channels": config["head_dim"]}
        return transformer.TransformerConfig(**given)
    return transformer.MLATransformerConfig(
        **given,
        multi_latent_attention=True,
        q_lora_rank=config["q_lora_rank"],
        kv_lora_rank=config["kv_lora_rank"],
        qk_head_dim=config["qk_nope_head_dim"],
        qk_pos_emb_head_dim=config["qk_rope_head_dim"],
        v_head_dim=config["v_head_dim"],
        rope_type="rope",
    )


def _experts(case: Case) -> dict[str, Any]:
    config = case.config
    experts = config.get("num_experts", config.get("n_routed_experts"))
    if experts is None:
        return {}
    given: dict[str, Any] = {
        "num_moe_experts": experts,
        "moe_ffn_hidden_size": config["moe_intermediate_size"],
        "moe_router_topk": config["num_experts_per_tok"],
        "moe_token_dispatcher_type": "allgather",
        "moe_router_load_balancing_type": "none",
    }
    if "n_shared_experts" in config:
        dense = config["first_k_dense_replace"]
        given |= {
            "moe_shared_expert_intermediate_size": config["moe_intermediate_size"],
            "moe_layer_freq": [0] * dense + [1] * (config["num_hidden_layers"] - dense),
            "moe_router_enable_expert_bias": True,
            "moe_router_score_function": "sigmoid",
        }
    return given


def build(case: Case) -> list[nn.Module]:
    """Build the chunks of this rank."""
    config = configuration(case)
    specs = _import("models.gpt.gpt_layer_specs")
    if isinstance(config.moe_layer_freq, list):
        spec = specs.get_gpt_decoder_block_spec(config, use_transformer_engine=False)
    else:
        spec = specs.get_gpt_layer_local_spec(
            num_experts=config.num_moe_experts, qk_layernorm=True, normalization="RMSNorm"
        )
    more: dict[str, Any] = {}
    if case.mtp:
        block = specs.get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False)
        more["mtp_block_spec"] = block
    chunks = [_chunk(case, config, spec, number, more) for number in range(case.chunks)]
    for chunk in chunks if case.transformer_engine else ():
        group_experts(chunk)
        hold_in_blocks(chunk)
    return chunks


def _chunk(case: Case, config: Any, spec: Any, number: int, more: dict[str, Any]) -> nn.Module:
    state, stage = _import("parallel_state"), number if case.chunks > 1 else None
    if stage is not None:
        more = more | {"vp_stage": stage}
    return _import("models.gpt").GPTModel(
        config,
        spec,
        vocab_size=case.vocabulary,
        max_sequence_length=64,
        pre_process=state.is_pipeline_first_stage(ignore_virtual=stage is None, vp_stage=stage),
        post_process=state.is_pipeline_last_stage(ignore_virtual=stage is None, vp_stage=stage),
        share_embeddings_and_output_weights=case.config["tie_word_embeddings"],
        position_embedding_type="rope",
        **more,
    )


def wrapped(case: Case, chunks: list[nn.Module]) -> list[nn.Module]:
    """Wrap chunks as Megatron's training does, if the case asks for it."""
    if not case.wrapped:
        return chunks
    config, data_parallel = configuration(case), _import("distributed")
    options = data_parallel.DistributedDataParallelConfig(use_distributed_optimizer=True)
    half = _import("transformer.module").Float16Module
    return [
        data_parallel.DistributedDataParallel(config, options, half(config, chunk))
        for chunk in chunks
    ]


def load(case: Case, chunks: list[nn.Module], weights: Weights) -> None:
    """Copy every parameter and saved buffer of the chunks out of the whole model's tensors.

    Args:
        case: The model and its mesh.
        chunks: Of this rank.
        weights: As the same model would hold them on one rank, by the names that it has there.
    """
    experts = _experts(case).get("num_moe_experts", 0) // case.sizes.ep
    for chunk in chunks:
        layers = layer_numbers(chunk)
        for name, tensor in chunk.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):
                part = own_part(weights[whole_name(name, layers, experts)], tensor)
                if isinstance(tensor, Float8BlockwiseQTensor):
                    tensor.fill(part)
                else:
                    tensor.data.copy_(part)


def layer_numbers(chunk: nn.Module) -> dict[str, int]:
    """Return the layers of a chunk by name, as Megatron numbers them in the whole model."""
    found: dict[str, int] = {}
    for path, module in submodules(chunk):
        if path[:2] == ("decoder", "layers") and len(path) == 3:
            found[".".join(path)] = int(getattr(module, "layer_number")) - 1  # noqa: B009 -- not of nn.Module
    return found


def whole_name(name: str, layers: dict[str, int], experts: int) -> str:
    """Return the name that a tensor of a chunk has in the whole model; `experts` are per rank."""
    parts = name.split(".")
    if ".".join(parts[:3]) in layers:
        parts[2] = str(layers[".".join(parts[:3])])
    if "local_experts" in parts:
        place = parts.index("local_experts") + 1
        rank = _import("parallel_state").get_expert_model_parallel_rank()
        parts[place] = str(rank * experts + int(parts[place]))
    elif grouped := re.fullmatch(r"(.*\.experts)\.(linear_fc\d\.weight)(\d+)", ".".join(parts)):
        rank = _import("parallel_state").get_expert_model_parallel_rank()
        return f"{grouped[1]}.local_experts.{rank * experts + int(grouped[3])}.{grouped[2]}"
    return ".".join(parts)


def own_part(whole: Tensor, tensor: Any) -> Tensor:
    """Cut what a rank holds by the attributes of its parameter, as Megatron initializes it.

    `partition_stride` counts the tensors of which one partition of each is held (`layers.py`,
    `_initialize_affine_weight_cpu`).
    """
    if not getattr(tensor, "tensor_model_parallel", False):
        return whole
    state = _import("parallel_state")
    rank, size = (
        state.get_tensor_model_parallel_rank(),
        state.get_tensor_model_parallel_world_size(),
    )
    if not getattr(tensor, "allreduce", True):
        rank = state.get_expert_tensor_parallel_rank()
        size = state.get_expert_tensor_parallel_world_size()
    parts = whole.chunk(size * tensor.partition_stride, dim=tensor.partition_dim)
    return torch.cat(parts[rank::size], dim=tensor.partition_dim)

"""Put a Megatron-core model together, and name its tensors as a checkpoint does.

This is for the check, and is done by the attributes that Megatron gives its parameters, without
what tranship knows: `partition_dim` of those that tensor parallelism splits, and `allreduce`, which
is False for those of experts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]

NAMES = {
    "embedding.word_embeddings": "model.embed_tokens",
    "decoder.final_layernorm": "model.norm",
    "output_layer": "lm_head",
    "input_layernorm": "input_layernorm",
    "self_attention.linear_proj": "self_attn.o_proj",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.router": "mlp.gate",
    "linear_fc2": "down_proj",
}
"""Modules by Megatron's names, within a layer or an expert if they are in one: a checkpoint's."""


def is_expert(parameter: Any) -> bool:
    """Whether a parameter belongs to an expert."""
    return not getattr(parameter, "allreduce", True)


def is_split(parameter: Any) -> bool:
    """Whether tensor parallelism splits a parameter."""
    return not is_expert(parameter) and getattr(parameter, "tensor_model_parallel", False)


def whole_model(model: nn.Module, ranks: Sequence[Tensors]) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters of the whole model.

    Args:
        model: of any rank.
        ranks: the parameters of every rank by name; all are ranks of `tp`, and of `ep`.
    """
    for name, parameter in model.named_parameters():
        parts = [rank[name] for rank in ranks]
        if is_expert(parameter):
            for number, part in enumerate(parts):
                yield expert_name(name, number, model), part
        elif is_split(parameter):
            yield name, torch.cat(parts, dim=getattr(parameter, "partition_dim", 0))
        else:
            assert all(torch.equal(part, parts[0]) for part in parts), name
            yield name, parts[0]


def expert_name(name: str, rank: int, model: nn.Module) -> str:
    """Number an expert as the whole model does: every rank counts its own from 0."""
    head, number, tail = re.split(r"(?<=local_experts)\.(\d+)\.", name)
    count = len(model.get_submodule(head))  # pyright: ignore[reportArgumentType] -- a ModuleList
    return f"{head}.{rank * count + int(number)}.{tail}"


def checkpoint(whole: Tensors, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the model as its checkpoint has them."""
    found: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        path = name.removeprefix("module.").removesuffix(".weight")
        layer, module = split_name(path)
        if module.endswith("linear_qkv"):
            parts = query_key_value(tensor, config)
            found |= {f"{layer}self_attn.{part}.weight": value for part, value in parts.items()}
        elif module.endswith("linear_fc1"):
            gate, up = tensor.chunk(2)
            found[f"{layer}gate_proj.weight"], found[f"{layer}up_proj.weight"] = gate, up
        else:
            found[f"{layer}{NAMES[module]}.weight"] = tensor
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        found[name] = found[name][: config["vocab_size"]]
    return found


def split_name(path: str) -> tuple[str, str]:
    """Split a module's path into a checkpoint's layer, and expert if it is of one, and the rest."""
    layer = re.fullmatch(r"decoder\.layers\.(\d+)\.(.*)", path)
    if layer is None:
        return "", path
    prefix, module = f"model.layers.{layer[1]}.", layer[2]
    expert = re.fullmatch(r"mlp\.experts\.local_experts\.(\d+)\.(.*)", module)
    return (f"{prefix}mlp.experts.{expert[1]}.", expert[2]) if expert else (prefix, module)


def query_key_value(tensor: Tensor, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take apart `linear_qkv`: each key head is stacked with the query heads of its group."""
    groups, head = config["num_key_value_heads"], config["head_dim"]
    queries = config["num_attention_heads"] // groups
    grouped = tensor.reshape(groups, queries + 2, head, -1)
    parts = {
        "q_proj": grouped[:, :queries],
        "k_proj": grouped[:, queries],
        "v_proj": grouped[:, queries + 1],
    }
    return {name: part.reshape(-1, tensor.shape[1]) for name, part in parts.items()}

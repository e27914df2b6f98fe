"""Every example shrunk: the same commands with smaller sizes, and blocks of 4 x 4 for 128 x 128.

What makes an example what it is stays: stages of unequal length, blocks that shards cut, experts
on a mesh of their own, replicas, attention data parallelism, shared experts, dense first layers,
latent attention with half a block of rows. So does the list of edges, which a test compares.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.examples.catalog import EXAMPLES, name_of, requests
from tests.mutants.declare import Case
from tranship.models.produce import Request, produce
from tranship.models.quantize import BLOCK_128, SCHEMES
from tranship.schema.codec import load
from tranship.schema.manifest import Manifest
from tranship.schema.placement import Placement
from tranship.schema.transfer import Options, Transfer

Config = dict[str, Any]
Settings = dict[str, str]

BLOCK = 4
STAGING = 1 << 14
"""Bytes: little enough for several rounds."""

ROPE = {"factor": 2, "original_max_position_embeddings": 8}


@dataclass(frozen=True)
class Sizes:
    """What changes in a config.json, and in the options of the two commands."""

    config: Config
    sender: Settings
    receiver: Settings


@dataclass(frozen=True)
class Small:
    """A shrunk example: its config, both requests, and what they make."""

    config: Config
    sender: Request
    receiver: Request
    case: Case


QWEN3: Config = {
    "hidden_size": 16,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 100,
    "max_position_embeddings": 8,
}
QWEN3_MOE: Config = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "moe_intermediate_size": 12,
    "num_experts": 8,
    "vocab_size": 100,
    "max_position_embeddings": 8,
}
DEEPSEEK: Config = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "first_k_dense_replace": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 8,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 4,
    "moe_intermediate_size": 8,
    "n_routed_experts": 8,
    "vocab_size": 100,
    "max_position_embeddings": 16,
}
KIMI: Config = DEEPSEEK | {"num_hidden_layers": 5, "n_routed_experts": 16}
"""Heads of 6 query rows, so that only pairs of heads are whole blocks; 14 rows of `kv_a`, so that
its last block is cut short."""

MEGATRON_DEEPSEEK: Settings = {
    "world_size": "12",
    "pipeline_model_parallel_size": "3",
    "expert_model_parallel_size": "4",
    "num_layers_in_first_pipeline_stage": "2",
    "num_layers_in_last_pipeline_stage": "1",
}
MEGATRON_KIMI: Settings = {
    "world_size": "12",
    "tensor_model_parallel_size": "2",
    "pipeline_model_parallel_size": "3",
    "expert_model_parallel_size": "4",
    "num_layers_in_first_pipeline_stage": "2",
    "num_layers_in_last_pipeline_stage": "1",
}

SIZES: Mapping[str, Sizes] = {
    "qwen3-8b/qwen3-8b": Sizes(QWEN3, {"shard_size": "4"}, {"replicas": "2"}),
    "qwen3-8b/fsdp24": Sizes(QWEN3, {}, {"replicas": "2"}),
    "qwen3-30b-a3b/qwen3-30b-a3b": Sizes(QWEN3_MOE, {}, {}),
    "deepseek-v3/deepseek-v3": Sizes(DEEPSEEK, MEGATRON_DEEPSEEK, {"tp_size": "2", "ep_size": "2"}),
    "kimi-k2/ep128": Sizes(KIMI, MEGATRON_KIMI, {"tp_size": "4", "ep_size": "4", "dp_size": "4"}),
    "kimi-k2/ep16": Sizes(KIMI, MEGATRON_KIMI, {"tp_size": "2", "ep_size": "2", "replicas": "3"}),
}
"""By the example's name."""


@cache
def small(name: str) -> Small:
    """Shrink an example."""
    transfer = EXAMPLES / f"{name}.transfer.toml"
    assert name_of(transfer) == name
    spec, sizes = load(transfer, Transfer).value, SIZES[name]
    asked = requests(transfer.with_name("regenerate.sh"))
    config = json.loads((transfer.parent / "config.json").read_text()) | sizes.config
    if "rope_scaling" in config:
        config["rope_scaling"] |= ROPE
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        sender = _shrunk(asked[spec.sender], str(path), sizes.sender)
        receiver = _shrunk(asked[spec.receiver], str(path), sizes.receiver)
        sides = _produced(sender), _produced(receiver)
    placement = spec.placement and load(transfer.parent / spec.placement, Placement).value
    options = Options(formula=spec.options.formula, staging_bytes=STAGING)
    case = Case(name, *sides, placement=placement or None, options=options)
    return Small(config, sender, receiver, case)


def _shrunk(request: Request, config: str, options: Settings) -> Request:
    assert options.keys() <= request.options.keys()
    return replace(request, config=config, options={**request.options, **options})


def _produced(request: Request) -> Manifest:
    schemes = {BLOCK_128.name: replace(BLOCK_128, block=(BLOCK, BLOCK))}
    with patch.dict(SCHEMES, schemes):
        return produce(request)

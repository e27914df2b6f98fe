"""FSDP2's shards against `torch.chunk`, by which it makes them."""

from pathlib import Path

import pytest
import torch

from tests.models.produced import held_by, made, random_weights, same

BUFFERS = "e_score_correction_bias"


def chunk(tensor: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    chunks = tensor.chunk(ranks)
    return chunks[rank] if rank < len(chunks) else tensor[:0]


@pytest.mark.parametrize(
    ("name", "shards", "replicas", "rank"),
    [
        ("qwen3", 1, 1, 0),
        ("qwen3", 3, 1, 2),  # 1000 rows leave the last rank short
        ("llama", 24, 1, 0),
        ("llama", 24, 1, 23),
        ("qwen3_moe", 7, 2, 13),  # the second copy of the last shard
        ("deepseek_v3", 3, 2, 1),
        ("glm4_moe", 300, 1, 299),  # vectors of 128 leave ranks empty
    ],
)
def test_every_shard_is_torchs_chunk(
    tmp_path: Path, name: str, shards: int, replicas: int, rank: int
):
    manifest = made(tmp_path, name, "fsdp", {"shard_size": shards, "replicate_size": replicas})
    assert manifest.world_size == shards * replicas
    weights = random_weights(manifest)
    expected = {
        key: tensor if key.endswith(BUFFERS) else chunk(tensor, shards, rank % shards)
        for key, tensor in weights.items()
    }
    assert same(held_by(manifest, rank, weights), expected)


@pytest.mark.parametrize(("shards", "rank"), [(1, 0), (3, 1), (3, 2), (5, 4), (16, 7), (16, 8)])
def test_stacked_experts_are_chunked_by_expert(tmp_path: Path, shards: int, rank: int):
    options = {"shard_size": shards, "stacked_experts": 1}
    manifest = made(tmp_path, "deepseek_v3", "fsdp", options)
    weights = random_weights(manifest)
    held = held_by(manifest, rank, weights)
    for layer in (1, 2):
        experts = [f"model.layers.{layer}.mlp.experts.{expert}" for expert in range(8)]
        both = [
            torch.cat([weights[f"{e}.{part}_proj.weight"] for part in ("gate", "up")])
            for e in experts
        ]
        down = torch.stack([weights[f"{e}.down_proj.weight"] for e in experts])
        prefix = f"model.layers.{layer}.mlp.experts"
        assert torch.equal(held[f"{prefix}.gate_up_proj"], chunk(torch.stack(both), shards, rank))
        assert torch.equal(held[f"{prefix}.down_proj"], chunk(down, shards, rank))

"""Megatron's buffers against a model that is built and sharded as Megatron-core documents it.

The query, key and value of a query group are neighbours in `linear_qkv`; `linear_fc1` stacks a
rank's rows of gate and up; the vocabulary is padded to a multiple of `make_vocab_size_divisible_by`
times the tensor-parallel size; ranks run tp, (ep,) dp, pp from the fastest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.configs import CONFIGS
from tests.models.produced import held_by, made, random_weights, same
from tranship.schema.check import check_manifest

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh, and the layers of every chunk in the order of the layers."""

    tp: int
    pp: int
    ep: int
    etp: int
    world: int
    chunks: tuple[tuple[int, ...], ...]

    def place(self, rank: int) -> "Place":
        return Place(
            self, rank % self.tp, rank % self.etp, rank // self.etp % self.ep, self.stage(rank)
        )

    def stage(self, rank: int) -> int:
        return rank // (self.world // self.pp)


@dataclass(frozen=True)
class Place:
    """The coordinates of a rank."""

    mesh: Mesh
    tp: int
    etp: int
    ep: int
    pp: int

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(self.mesh.tp)[self.tp]

    def columns(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(self.mesh.tp, dim=1)[self.tp]

    def fused(self, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.rows(tensor) for tensor in tensors])


def query_groups(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Interleave by query group, as Megatron's converters from Hugging Face do."""
    groups = CONFIGS["qwen3"]["num_key_value_heads"]
    rest = query.shape[1:]
    parts = [part.reshape(groups, -1, *rest) for part in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def padded(tensor: torch.Tensor, tp: int) -> torch.Tensor:
    """Pad 1000 rows to a multiple of 128 times the tensor-parallel size."""
    rows = -(-tensor.shape[0] // (128 * tp)) * 128 * tp
    filling = torch.full((rows - tensor.shape[0], tensor.shape[1]), float("nan"))
    return torch.cat([tensor, filling])


def attention(weights: Weights, source: str, place: Place) -> Weights:
    def of(name: str) -> torch.Tensor:
        return weights[f"{source}.{name}"]

    held = {"linear_proj.weight": place.columns(of("o_proj.weight"))}
    if f"{source}.kv_b_proj.weight" in weights:
        return held | {
            "linear_q_down_proj.weight": of("q_a_proj.weight"),
            "linear_q_up_proj.layer_norm_weight": of("q_a_layernorm.weight"),
            "linear_q_up_proj.weight": place.rows(of("q_b_proj.weight")),
            "linear_kv_down_proj.weight": of("kv_a_proj_with_mqa.weight"),
            "linear_kv_up_proj.layer_norm_weight": of("kv_a_layernorm.weight"),
            "linear_kv_up_proj.weight": place.rows(of("kv_b_proj.weight")),
        }
    for leaf in ("weight", "bias"):
        if f"{source}.q_proj.{leaf}" in weights:
            parts = (of(f"{part}_proj.{leaf}") for part in "qkv")
            held[f"linear_qkv.{leaf}"] = place.rows(query_groups(*parts))
    if f"{source}.o_proj.bias" in weights:
        held["linear_proj.bias"] = of("o_proj.bias")
    for part in "qk":
        if f"{source}.{part}_norm.weight" in weights:
            held[f"{part}_layernorm.weight"] = of(f"{part}_norm.weight")
    return held


def mlp(weights: Weights, source: str, place: Place) -> Weights:
    def of(name: str) -> torch.Tensor:
        return weights[f"{source}.{name}_proj.weight"]

    return {
        "linear_fc1.weight": place.fused(of("gate"), of("up")),
        "linear_fc2.weight": place.columns(of("down")),
    }


def experts(weights: Weights, source: str, place: Place, count: int) -> Weights:
    mesh, held = place.mesh, dict[str, torch.Tensor]()
    inner = Place(Mesh(mesh.etp, 1, 1, 1, 1, ()), place.etp, 0, 0, 0)
    own = count // mesh.ep
    for local, expert in enumerate(range(place.ep * own, (place.ep + 1) * own)):
        for name, tensor in mlp(weights, f"{source}.experts.{expert}", inner).items():
            held[f"experts.{name}{local}"] = tensor
    held["router.weight"] = weights[f"{source}.gate.weight"]
    if f"{source}.gate.e_score_correction_bias" in weights:
        held["router.expert_bias"] = weights[f"{source}.gate.e_score_correction_bias"]
        shared = mlp(weights, f"{source}.shared_experts", place)
        held |= {f"shared_experts.{name}": tensor for name, tensor in shared.items()}
    return held


def layer(weights: Weights, number: int, place: Place, count: int) -> Weights:
    source = f"model.layers.{number}"
    latent = f"{source}.self_attn.kv_b_proj.weight" in weights
    sparse = f"{source}.mlp.gate.weight" in weights
    norm = "input_layernorm.weight" if latent else "self_attention.linear_qkv.layer_norm_weight"
    held = {norm: weights[f"{source}.input_layernorm.weight"]}
    norm = "pre_mlp_layernorm.weight" if sparse else "mlp.linear_fc1.layer_norm_weight"
    held[norm] = weights[f"{source}.post_attention_layernorm.weight"]
    for name, tensor in attention(weights, f"{source}.self_attn", place).items():
        held[f"self_attention.{name}"] = tensor
    inner = (
        experts(weights, f"{source}.mlp", place, count)
        if sparse
        else mlp(weights, f"{source}.mlp", place)
    )
    return held | {f"mlp.{name}": tensor for name, tensor in inner.items()}


def built(weights: Weights, rank: int, mesh: Mesh, count: int) -> Weights:
    """Everything that a rank holds."""
    place, virtual = mesh.place(rank), len(mesh.chunks) // mesh.pp
    held: Weights = {}
    for chunk in range(virtual):
        prefix = f"{chunk}." if virtual > 1 else ""
        number = chunk * mesh.pp + place.pp
        for local, index in enumerate(mesh.chunks[number]):
            for name, tensor in layer(weights, index, place, count).items():
                held[f"{prefix}decoder.layers.{local}.{name}"] = tensor
        if number == 0:
            table = padded(weights["model.embed_tokens.weight"], mesh.tp)
            held[f"{prefix}embedding.word_embeddings.weight"] = place.rows(table)
        if number == len(mesh.chunks) - 1:
            held[f"{prefix}decoder.final_layernorm.weight"] = weights["model.norm.weight"]
            head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
            if "lm_head.weight" in weights or number > 0:
                held[f"{prefix}output_layer.weight"] = place.rows(padded(head, mesh.tp))
    return held


def chunked(*counts: int) -> tuple[tuple[int, ...], ...]:
    layers = iter(range(sum(counts)))
    return tuple(tuple(next(layers) for _ in range(count)) for count in counts)


@pytest.mark.parametrize(
    ("name", "mesh", "options", "changes"),
    [
        ("qwen3", Mesh(1, 1, 1, 1, 1, chunked(3)), {}, {}),
        ("qwen3", Mesh(4, 1, 1, 4, 8, chunked(3)), {}, {"attention_bias": True}),
        ("qwen3", Mesh(2, 3, 1, 2, 6, chunked(1, 1, 1)), {}, {"tie_word_embeddings": True}),
        ("qwen3", Mesh(2, 1, 1, 2, 2, chunked(3)), {}, {"tie_word_embeddings": True}),
        (
            "llama",
            Mesh(1, 2, 1, 1, 4, chunked(1, 2, 1, 2)),
            {"virtual_pipeline_model_parallel_size": 2, "pipeline_layers": "1,2,1,2"},
            {"num_hidden_layers": 6},
        ),
        (
            "qwen3",
            Mesh(2, 2, 1, 2, 4, chunked(1, 1, 1, 1)),
            {"virtual_pipeline_model_parallel_size": 2},
            {"num_hidden_layers": 4},
        ),
        ("qwen3_moe", Mesh(2, 1, 4, 1, 8, chunked(3)), {}, {}),
        ("qwen3_moe", Mesh(2, 1, 2, 2, 8, chunked(3)), {}, {"mlp_only_layers": [1]}),
        (
            "glm4_moe",
            Mesh(2, 2, 2, 1, 8, chunked(1, 2)),
            {"num_layers_in_first_pipeline_stage": 1},
            {"num_attention_heads": 8, "use_qk_norm": True},
        ),
        (
            "deepseek_v3",
            Mesh(2, 3, 4, 1, 12, chunked(1, 3, 2)),
            {"num_layers_in_first_pipeline_stage": 1, "num_layers_in_last_pipeline_stage": 2},
            {"num_hidden_layers": 6},
        ),
        ("deepseek_v3", Mesh(2, 2, 2, 2, 16, chunked(2, 1)), {"pipeline_layers": "2,1"}, {}),
    ],
)
def test_a_rank_holds_what_megatron_builds(
    tmp_path: Path, name: str, mesh: Mesh, options: dict[str, int], changes: dict[str, Any]
):
    sizes = {
        "world_size": mesh.world,
        "tensor_model_parallel_size": mesh.tp,
        "pipeline_model_parallel_size": mesh.pp,
        "expert_model_parallel_size": mesh.ep,
        "expert_tensor_parallel_size": mesh.etp,
    }
    manifest = made(tmp_path, name, "megatron", sizes | options, **changes)
    assert check_manifest(manifest) == ()
    weights = random_weights(manifest)
    count = CONFIGS[name].get("num_experts", CONFIGS[name].get("n_routed_experts", 0))
    for rank in {0, mesh.world // 2, mesh.world - 1}:
        assert same(held_by(manifest, rank, weights), built(weights, rank, mesh, count))


def test_experts_lie_on_a_mesh_of_their_own(tmp_path: Path):
    sizes = {
        "world_size": 8,
        "tensor_model_parallel_size": 4,
        "expert_model_parallel_size": 4,
        "expert_tensor_parallel_size": 2,
    }
    manifest = made(tmp_path, "qwen3_moe", "megatron", sizes)
    assert {(axis.name, axis.size, axis.stride) for axis in manifest.axes} == {
        ("tp", 4, 1),
        ("etp", 2, 1),
        ("ep", 4, 2),
    }

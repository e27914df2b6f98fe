"""What every rank of a trainer holds, cut with torch as FSDP2 and Megatron-core document it.

FSDP2 shards dim 0 by `torch.chunk`. Megatron-core numbers ranks tp, dp, pp from the fastest, and
on the experts' own mesh ep, dp, pp; `linear_qkv` has a query group's queries, key and value in a
row; `linear_fc1` stacks a rank's rows of gate and up; the vocabulary is padded to a multiple of 128
times the tensor-parallel size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.examples.checkpoint import Config, Weights, expert_count

Settings = Mapping[str, str]


def held_by_fsdp(weights: Weights, options: Settings) -> list[Weights]:
    """The shards of every rank; a rank behind the last rows has none."""
    size = int(options["shard_size"])
    return [
        {name: _shard(tensor, size, rank) for name, tensor in weights.items()}
        for rank in range(size)
    ]


def _shard(tensor: Tensor, size: int, rank: int) -> Tensor:
    shards = tensor.chunk(size)
    return (shards[rank] if rank < len(shards) else tensor[:0]).clone()


def held_by_megatron(config: Config, weights: Weights, options: Settings) -> list[Weights]:
    """The parameters and buffers of every rank, under Megatron's names."""
    world = int(options["world_size"])
    tp = int(options.get("tensor_model_parallel_size", "1"))
    ep = int(options["expert_model_parallel_size"])
    stages = _stages(config["num_hidden_layers"], options)
    per_stage = world // len(stages)
    return [
        _Rank(config, weights, tp, rank % tp, ep, rank % ep).stage(stages, rank // per_stage)
        for rank in range(world)
    ]


def _stages(layers: int, options: Settings) -> list[list[int]]:
    """The layers of every pipeline stage: the first and last may have another number of them."""
    count = int(options["pipeline_model_parallel_size"])
    ends = [options.get(f"num_layers_in_{end}_pipeline_stage") for end in ("first", "last")]
    given = [int(end) for end in ends if end is not None]
    inner = (layers - sum(given)) // (count - len(given))
    first, last = (inner if end is None else int(end) for end in ends)
    numbers = iter(range(layers))
    return [[next(numbers) for _ in range(n)] for n in (first, *[inner] * (count - 2), last)]


@dataclass(frozen=True)
class _Rank:
    config: Config
    weights: Weights
    tp_size: int
    tp: int
    ep_size: int
    ep: int

    def stage(self, stages: list[list[int]], number: int) -> Weights:
        held: Weights = {}
        for local, layer in enumerate(stages[number]):
            for name, tensor in self._layer(f"model.layers.{layer}").items():
                held[f"decoder.layers.{local}.{name}"] = tensor.clone()
        if number == 0:
            table = self._padded("model.embed_tokens.weight")
            held["embedding.word_embeddings.weight"] = table
        if number == len(stages) - 1:
            held["decoder.final_layernorm.weight"] = self.weights["model.norm.weight"].clone()
            held["output_layer.weight"] = self._padded("lm_head.weight")
        return held

    def _padded(self, name: str) -> Tensor:
        """The rank's rows of an embedding, with NaN for rows that pad the vocabulary."""
        tensor = self.weights[name]
        rows = -(-len(tensor) // (128 * self.tp_size)) * 128 * self.tp_size
        padding = tensor.new_full((rows - len(tensor), tensor.shape[1]), float("nan"))
        return self._rows(torch.cat([tensor, padding])).clone()

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.tp_size)[self.tp]

    def _columns(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.tp_size, dim=1)[self.tp]

    def _layer(self, source: str) -> Weights:
        weights, latent = self.weights, "kv_lora_rank" in self.config
        sparse = f"{source}.mlp.gate.weight" in weights
        first = "input_layernorm.weight"
        second = "pre_mlp_layernorm.weight" if sparse else "mlp.linear_fc1.layer_norm_weight"
        held = {
            first if latent else "self_attention.linear_qkv.layer_norm_weight": weights[
                f"{source}.input_layernorm.weight"
            ],
            second: weights[f"{source}.post_attention_layernorm.weight"],
        }
        attention = self._latent if latent else self._attention
        for name, tensor in attention(f"{source}.self_attn").items():
            held[f"self_attention.{name}"] = tensor
        mlp = self._experts if sparse else self._dense
        for name, tensor in mlp(f"{source}.mlp").items():
            held[f"mlp.{name}"] = tensor
        return held

    def _attention(self, source: str) -> Weights:
        groups = self.config["num_key_value_heads"]
        parts = [self.weights[f"{source}.{part}_proj.weight"] for part in "qkv"]
        by_group = [part.reshape(groups, -1, part.shape[1]) for part in parts]
        fused = torch.cat(by_group, dim=1).flatten(0, 1)
        return {
            "linear_qkv.weight": self._rows(fused),
            "linear_proj.weight": self._columns(self.weights[f"{source}.o_proj.weight"]),
            "q_layernorm.weight": self.weights[f"{source}.q_norm.weight"],
            "k_layernorm.weight": self.weights[f"{source}.k_norm.weight"],
        }

    def _latent(self, source: str) -> Weights:
        def of(name: str) -> Tensor:
            return self.weights[f"{source}.{name}.weight"]

        return {
            "linear_q_down_proj.weight": of("q_a_proj"),
            "linear_q_up_proj.layer_norm_weight": of("q_a_layernorm"),
            "linear_q_up_proj.weight": self._rows(of("q_b_proj")),
            "linear_kv_down_proj.weight": of("kv_a_proj_with_mqa"),
            "linear_kv_up_proj.layer_norm_weight": of("kv_a_layernorm"),
            "linear_kv_up_proj.weight": self._rows(of("kv_b_proj")),
            "linear_proj.weight": self._columns(of("o_proj")),
        }

    def _dense(self, source: str) -> Weights:
        gate, up, down = (
            self.weights[f"{source}.{part}_proj.weight"] for part in ("gate", "up", "down")
        )
        return {
            "linear_fc1.weight": torch.cat([self._rows(gate), self._rows(up)]),
            "linear_fc2.weight": self._columns(down),
        }

    def _experts(self, source: str) -> Weights:
        held = {"router.weight": self.weights[f"{source}.gate.weight"]}
        own = expert_count(self.config) // self.ep_size
        for local in range(own):
            expert = f"{source}.experts.{self.ep * own + local}"
            gate, up, down = (
                self.weights[f"{expert}.{part}_proj.weight"] for part in ("gate", "up", "down")
            )
            held[f"experts.linear_fc1.weight{local}"] = torch.cat([gate, up])
            held[f"experts.linear_fc2.weight{local}"] = down
        if f"{source}.gate.e_score_correction_bias" in self.weights:
            held["router.expert_bias"] = self.weights[f"{source}.gate.e_score_correction_bias"]
            shared = self._dense(f"{source}.shared_experts")
            held |= {f"shared_experts.{name}": tensor for name, tensor in shared.items()}
        return held

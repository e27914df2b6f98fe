"""What every rank of SGLang needs, made from whole tensors as SGLang 0.5.23's code does.

Whole linear weights are quantized, then codes and scales are sliced and fused:
`QKVParallelLinear` and `MergedColumnParallelLinear` (layers/linear.py) stack a rank's rows,
`FusedMoE` (layers/moe/fused_moe_triton/layer.py) stacks a rank's experts, `VocabParallelEmbedding`
(layers/vocab_parallel_embedding.py) pads with zeros to a multiple of 64, and `post_load_weights`
(models/deepseek_common/deepseek_weight_loader.py) makes `w_kc` and `w_vc`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tests.examples.checkpoint import Config, Weights, expert_count
from tests.properties.dense import quantize, spread
from tranship.schema.dtypes import DType
from tranship.schema.testing import Encoding

Settings = Mapping[str, str]


@dataclass(frozen=True)
class Linear:
    """A weight in FP8: codes, and a scale for every block."""

    codes: Tensor
    scales: Tensor

    def rows(self, parts: int, number: int) -> "Linear":
        return Linear(self.codes.chunk(parts)[number], self.scales.chunk(parts)[number])

    def columns(self, parts: int, number: int) -> "Linear":
        codes, scales = self.codes.chunk(parts, dim=1), self.scales.chunk(parts, dim=1)
        return Linear(codes[number], scales[number])


def fused(*parts: Linear) -> Linear:
    """Rows of several weights, one after another; each keeps blocks of its own."""
    return Linear(torch.cat([p.codes for p in parts]), torch.cat([p.scales for p in parts]))


def stacked(parts: list[Linear]) -> Linear:
    """One weight for every expert."""
    return Linear(torch.stack([p.codes for p in parts]), torch.stack([p.scales for p in parts]))


class _Attention(Protocol):
    def __call__(self, source: str) -> Weights: ...


def held_by_sglang(
    config: Config, weights: Weights, options: Settings, block: int
) -> list[Weights]:
    """The parameters and derived attributes of every rank of all engines."""
    encoding = Encoding(DType.F8E4M3FN, (block, block))
    linears = {
        name: Linear(*quantize(tensor, encoding, "divide"))
        for name, tensor in weights.items()
        if "_proj" in name
    }
    ranks = range(int(options["tp_size"]))
    engine = [_Rank.of(config, weights, linears, options, rank).memory() for rank in ranks]
    copies = int(options.get("replicas", "1"))
    return [
        {name: tensor.clone(memory_format=torch.preserve_format) for name, tensor in held.items()}
        for _ in range(copies)
        for held in engine
    ]


@dataclass(frozen=True)
class _Rank:
    config: Config
    weights: Weights
    linears: Mapping[str, Linear]
    tp: tuple[int, int]
    attention_tp: tuple[int, int]
    ep: tuple[int, int]
    dense_tp: tuple[int, int]
    shared_tp: tuple[int, int]

    @staticmethod
    def of(
        config: Config,
        weights: Weights,
        linears: Mapping[str, Linear],
        options: Settings,
        rank: int,
    ) -> "_Rank":
        tp, ep = int(options["tp_size"]), int(options.get("ep_size", "1"))
        spread_requests = options.get("enable_dp_attention") == "true"
        attention = tp // (int(options["dp_size"]) if spread_requests else 1)
        whole = options.get("moe_a2a_backend", "none") != "none"
        dense = int(options.get("moe_dense_tp_size", tp))
        return _Rank(
            config,
            weights,
            linears,
            (tp, rank),
            (attention, rank % attention),
            (ep, rank // (tp // ep)),
            (dense, rank % dense),
            (1, 0) if whole else (tp, rank),
        )

    def memory(self) -> Weights:
        held = {name: tensor for name, tensor in self.weights.items() if tensor.dim() == 1}
        held["model.embed_tokens.weight"] = self._vocabulary("embed_tokens", self.attention_tp)
        held["lm_head.weight"] = self._vocabulary("lm_head", self.tp)
        for layer in range(self.config["num_hidden_layers"]):
            held |= self._layer(f"model.layers.{layer}")
        return held

    def _vocabulary(self, name: str, place: tuple[int, int]) -> Tensor:
        prefix = "model." if name == "embed_tokens" else ""
        tensor, (parts, number) = self.weights[f"{prefix}{name}.weight"], place
        padding = 64 if -(-len(tensor) // 64) * 64 % parts == 0 else 64 * parts
        rows = -(-len(tensor) // padding) * padding
        zeros = tensor.new_zeros((rows - len(tensor), tensor.shape[1]))
        return torch.cat([tensor, zeros]).chunk(parts)[number]

    def _layer(self, prefix: str) -> Weights:
        latent = "kv_lora_rank" in self.config
        attention: _Attention = self._latent if latent else self._attention
        held = attention(f"{prefix}.self_attn")
        if f"{prefix}.mlp.gate.weight" not in self.weights:
            return held | self._mlp(f"{prefix}.mlp", self.dense_tp)
        held[f"{prefix}.mlp.gate.weight"] = self.weights[f"{prefix}.mlp.gate.weight"]
        if f"{prefix}.mlp.shared_experts.up_proj.weight" in self.linears:
            held |= self._mlp(f"{prefix}.mlp.shared_experts", self.shared_tp)
        return held | self._experts(f"{prefix}.mlp.experts")

    def _attention(self, source: str) -> Weights:
        queries = [self.linears[f"{source}.{part}_proj.weight"] for part in "qkv"]
        output = self.linears[f"{source}.o_proj.weight"].columns(*self.attention_tp)
        joined = fused(*(part.rows(*self.attention_tp) for part in queries))
        return _named(f"{source}.qkv_proj.weight", joined) | _named(
            f"{source}.o_proj.weight", output
        )

    def _latent(self, source: str) -> Weights:
        def of(name: str) -> Linear:
            return self.linears[f"{source}.{name}.weight"]

        up = of("kv_b_proj").rows(*self.attention_tp)
        held = _named(
            f"{source}.fused_qkv_a_proj_with_mqa.weight",
            fused(of("q_a_proj"), of("kv_a_proj_with_mqa")),
        )
        held |= _named(f"{source}.q_b_proj.weight", of("q_b_proj").rows(*self.attention_tp))
        held |= _named(f"{source}.kv_b_proj.weight", up)
        held |= _named(f"{source}.o_proj.weight", of("o_proj").columns(*self.attention_tp))
        nope = self.config["qk_nope_head_dim"]
        keys, values = absorbed(up, nope, self.config["v_head_dim"])
        return held | {f"{source}.w_kc": keys, f"{source}.w_vc": values}

    def _mlp(self, source: str, place: tuple[int, int]) -> Weights:
        gate, up, down = (
            self.linears[f"{source}.{part}_proj.weight"] for part in ("gate", "up", "down")
        )
        return _named(
            f"{source}.gate_up_proj.weight", fused(gate.rows(*place), up.rows(*place))
        ) | _named(f"{source}.down_proj.weight", down.columns(*place))

    def _experts(self, source: str) -> Weights:
        parts, number = self.ep
        own = expert_count(self.config) // parts
        names = [f"{source}.{expert}" for expert in range(number * own, (number + 1) * own)]
        gates, ups, downs = (
            [self.linears[f"{name}.{part}_proj.weight"] for name in names]
            for part in ("gate", "up", "down")
        )
        both = [fused(gate, up) for gate, up in zip(gates, ups, strict=True)]
        return _named(f"{source}.w13_weight", stacked(both)) | _named(
            f"{source}.w2_weight", stacked(downs)
        )


def _named(name: str, linear: Linear) -> Weights:
    return {name: linear.codes, f"{name}_scale_inv": linear.scales}


def absorbed(linear: Linear, nope: int, value: int) -> tuple[Tensor, Tensor]:
    """`w_kc` and `w_vc` of a rank's `kv_b_proj`: dequantized, split by head, and turned."""
    block = tuple(
        -(-size // count)
        for size, count in zip(linear.codes.shape, linear.scales.shape, strict=True)
    )
    values = linear.codes.float() * spread(linear.scales, block, linear.codes.shape)
    heads = values.bfloat16().reshape(-1, nope + value, values.shape[1])
    keys, rest = heads[:, :nope], heads[:, nope:]
    return keys.transpose(1, 2).contiguous().transpose(1, 2), rest.contiguous().transpose(1, 2)

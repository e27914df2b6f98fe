"""Small models of many architectures: what config.json has, and what their checkpoints hold.

Names and shapes are those of the checkpoints that the architectures' authors publish.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.models.configs import CONFIGS, FP8
from tranship.runtime.frameworks.tracing.scales import SCALE_SUFFIX
from tranship.schema.dtypes import DType
from tranship.schema.records import Ints

Config = dict[str, Any]
Weights = Iterator[tuple[str, Ints]]
Sources = dict[str, tuple[DType, Ints]]

BLOCK = 128


@dataclass(frozen=True)
class Architecture:
    """A small model.

    `linear` are the weights that FP8 checkpoints hold as codes, `plain` all others, which are BF16
    unless their last name is one of `float32`. `arguments` are the engine's.
    """

    config: Config
    linear: Callable[[Config], Weights]
    plain: Callable[[Config], Weights]
    float32: frozenset[str] = frozenset()
    arguments: Mapping[str, int | bool | str] = field(default_factory=dict[str, int | bool | str])

    def sources(self, *, fp8: bool) -> Sources:
        """Return dtype and shape of a checkpoint's tensors."""
        found: Sources = {}
        for name, shape in self.linear(self.config):
            found[name] = (DType.F8E4M3FN if fp8 else DType.BF16), shape
            if fp8:
                grid = tuple(-(-size // BLOCK) for size in shape)
                found[name + SCALE_SUFFIX] = DType.F32, grid
        for name, shape in self.plain(self.config):
            wide = name.rpartition(".")[2] in self.float32
            found[name] = (DType.F32 if wide else DType.BF16), shape
        return found

    def settings(self, *, fp8: bool) -> Config:
        """Return what config.json has."""
        return self.config | (FP8 if fp8 else {})


def _layers(config: Config) -> Iterator[tuple[int, str]]:
    for layer in range(config["num_hidden_layers"]):
        yield layer, f"model.layers.{layer}"


def _ends(config: Config) -> Weights:
    table = config["vocab_size"], config["hidden_size"]
    yield "model.embed_tokens.weight", table
    yield "model.norm.weight", table[1:]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", table


def _norms(config: Config, *names: str) -> Weights:
    for _, layer in _layers(config):
        for name in names or ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{name}.weight", (config["hidden_size"],)


def _sizes(config: Config) -> dict[str, int]:
    head = config["head_dim"]
    groups = config["num_key_value_heads"] * head
    return {"q": config["num_attention_heads"] * head, "k": groups, "v": groups}


def _attention(config: Config) -> Weights:
    hidden, sizes = config["hidden_size"], _sizes(config)
    for _, layer in _layers(config):
        for name, rows in sizes.items():
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, sizes["q"])


def _gated(
    prefix: str, hidden: int, inner: int, names: str = "gate_proj up_proj down_proj"
) -> Weights:
    gate, up, down = names.split()
    yield f"{prefix}.{gate}.weight", (inner, hidden)
    yield f"{prefix}.{up}.weight", (inner, hidden)
    yield f"{prefix}.{down}.weight", (hidden, inner)


def _dense(config: Config) -> Weights:
    yield from _attention(config)
    for _, layer in _layers(config):
        yield from _gated(f"{layer}.mlp", config["hidden_size"], config["intermediate_size"])


def _head_norms(config: Config, *, whole: bool = False) -> Weights:
    sizes = _sizes(config)
    for _, layer in _layers(config):
        for name in ("q", "k"):
            size = sizes[name] if whole else config["head_dim"]
            yield f"{layer}.self_attn.{name}_norm.weight", (size,)


# --- Mixtral, OLMoE, MiniMax-M2: the same experts under other names -------------------------------


def _experts(path: str, count: str, inner: str, names: str) -> Callable[[Config], Weights]:
    def weights(config: Config) -> Weights:
        yield from _attention(config)
        for _, layer in _layers(config):
            for expert in range(config[count]):
                prefix = f"{layer}.{path}.experts.{expert}"
                yield from _gated(prefix, config["hidden_size"], config[inner], names)

    return weights


def _router(path: str, count: str) -> Callable[[Config], Weights]:
    def weights(config: Config) -> Weights:
        yield from _ends(config)
        yield from _norms(config)
        for _, layer in _layers(config):
            yield f"{layer}.{path}.gate.weight", (config[count], config["hidden_size"])

    return weights


def _olmoe_plain(config: Config) -> Weights:
    yield from _router("mlp", "num_experts")(config)
    yield from _head_norms(config, whole=True)


def _minimax_plain(config: Config) -> Weights:
    yield from _router("block_sparse_moe", "num_local_experts")(config)
    yield from _head_norms(config, whole=True)
    for _, layer in _layers(config):
        name = f"{layer}.block_sparse_moe.e_score_correction_bias"
        yield name, (config["num_local_experts"],)


# --- gpt-oss: experts stacked, gate and up interleaved, biases, sinks -----------------------------


def _gpt_oss(config: Config) -> Weights:
    yield from _ends(config)
    yield from _norms(config)
    yield from _attention(config)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    experts = config["num_local_experts"]
    for _, layer in _layers(config):
        for name, rows in {**_sizes(config), "o": hidden}.items():
            yield f"{layer}.self_attn.{name}_proj.bias", (rows,)
        yield f"{layer}.self_attn.sinks", (config["num_attention_heads"],)
        yield f"{layer}.mlp.router.weight", (experts, hidden)
        yield f"{layer}.mlp.router.bias", (experts,)
        yield f"{layer}.mlp.experts.gate_up_proj", (experts, hidden, 2 * inner)
        yield f"{layer}.mlp.experts.gate_up_proj_bias", (experts, 2 * inner)
        yield f"{layer}.mlp.experts.down_proj", (experts, inner, hidden)
        yield f"{layer}.mlp.experts.down_proj_bias", (experts, hidden)


def _gemma_plain(config: Config) -> Weights:
    yield from _ends(config)
    yield from _head_norms(config)
    around = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    yield from _norms(config, *(f"{name}_layernorm" for name in around))


# --- DeepSeek-V3.2 and GLM with sparse attention: latent attention, and an indexer ----------------


def _latent(config: Config) -> Weights:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    query, latent, rope = (config[k] for k in ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim"))
    nope, value = config["qk_nope_head_dim"], config["v_head_dim"]
    for index, layer in _layers(config):
        own = f"{layer}.self_attn"
        yield f"{own}.q_a_proj.weight", (query, hidden)
        yield f"{own}.q_b_proj.weight", (heads * (nope + rope), query)
        yield f"{own}.kv_a_proj_with_mqa.weight", (latent + rope, hidden)
        yield f"{own}.kv_b_proj.weight", (heads * (nope + value), latent)
        yield f"{own}.o_proj.weight", (hidden, heads * value)
        indexer = config["index_n_heads"] * config["index_head_dim"]
        yield f"{own}.indexer.wq_b.weight", (indexer, query)
        yield f"{own}.indexer.wk.weight", (config["index_head_dim"], hidden)
        if index < config["first_k_dense_replace"]:
            yield from _gated(f"{layer}.mlp", hidden, config["intermediate_size"])
            continue
        inner = config["moe_intermediate_size"]
        for expert in range(config["n_routed_experts"]):
            yield from _gated(f"{layer}.mlp.experts.{expert}", hidden, inner)
        yield from _gated(f"{layer}.mlp.shared_experts", hidden, inner)


def _latent_plain(config: Config) -> Weights:
    yield from _ends(config)
    yield from _norms(config)
    hidden = config["hidden_size"]
    for index, layer in _layers(config):
        own = f"{layer}.self_attn"
        yield f"{own}.q_a_layernorm.weight", (config["q_lora_rank"],)
        yield f"{own}.kv_a_layernorm.weight", (config["kv_lora_rank"],)
        yield f"{own}.indexer.k_norm.weight", (config["index_head_dim"],)
        yield f"{own}.indexer.k_norm.bias", (config["index_head_dim"],)
        yield f"{own}.indexer.weights_proj.weight", (config["index_n_heads"], hidden)
        if index >= config["first_k_dense_replace"]:
            yield f"{layer}.mlp.gate.weight", (config["n_routed_experts"], hidden)
            bias = f"{layer}.mlp.gate.e_score_correction_bias"
            yield bias, (config["n_routed_experts"],)


# --- Qwen3.5 with experts: linear attention in every other layer, and gated attention -------------


def _qwen35(config: Config) -> Weights:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    sizes = _sizes(config)
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    heads = config["linear_num_value_heads"]
    values = heads * config["linear_value_head_dim"]
    for index, layer in _layers(config):
        if config["layer_types"][index] == "full_attention":
            own = f"{layer}.self_attn"
            yield f"{own}.q_proj.weight", (2 * sizes["q"], hidden)
            yield f"{own}.k_proj.weight", (sizes["k"], hidden)
            yield f"{own}.v_proj.weight", (sizes["v"], hidden)
            yield f"{own}.o_proj.weight", (hidden, sizes["q"])
            yield f"{own}.q_norm.weight", (config["head_dim"],)
            yield f"{own}.k_norm.weight", (config["head_dim"],)
        else:
            own = f"{layer}.linear_attn"
            yield f"{own}.in_proj_qkv.weight", (2 * keys + values, hidden)
            yield f"{own}.in_proj_z.weight", (values, hidden)
            yield f"{own}.in_proj_b.weight", (heads, hidden)
            yield f"{own}.in_proj_a.weight", (heads, hidden)
            yield f"{own}.out_proj.weight", (hidden, values)
            taps = config["linear_conv_kernel_dim"]
            yield f"{own}.conv1d.weight", (2 * keys + values, 1, taps)
            yield f"{own}.dt_bias", (heads,)
            yield f"{own}.A_log", (heads,)
            yield f"{own}.norm.weight", (config["linear_value_head_dim"],)
        for expert in range(config["num_experts"]):
            yield from _gated(f"{layer}.mlp.experts.{expert}", hidden, inner)
        yield from _gated(f"{layer}.mlp.shared_expert", hidden, inner)
        yield f"{layer}.mlp.shared_expert_gate.weight", (1, hidden)
        yield f"{layer}.mlp.gate.weight", (config["num_experts"], hidden)


def _both(*parts: Callable[[Config], Weights]) -> Callable[[Config], Weights]:
    def weights(config: Config) -> Weights:
        for part in parts:
            yield from part(config)

    return weights


def _nothing(config: Config) -> Weights:
    del config
    yield from ()


# --- The models -----------------------------------------------------------------------------------

_BASE: Config = {**CONFIGS["llama"], "num_hidden_layers": 2}
_ROUTED: Config = {"num_experts_per_tok": 2}
_LATENT: Config = {
    **CONFIGS["deepseek_v3"],
    **{"num_hidden_layers": 2, "index_n_heads": 4, "index_head_dim": 128, "index_topk": 64},
}
_SLIDING: Config = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}

ARCHITECTURES: dict[str, Architecture] = {
    "mixtral": Architecture(
        _BASE
        | _ROUTED
        | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
        | {"num_local_experts": 4, "rope_theta": 1e6, "hidden_size": 512}
        | {"num_attention_heads": 4, "num_key_value_heads": 2},
        _experts("block_sparse_moe", "num_local_experts", "intermediate_size", "w1 w3 w2"),
        _router("block_sparse_moe", "num_local_experts"),
    ),
    "olmoe": Architecture(
        _BASE
        | _ROUTED
        | {"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe"}
        | {"num_experts": 4, "norm_topk_prob": False, "hidden_size": 512}
        | {"num_attention_heads": 4, "num_key_value_heads": 4},
        _experts("mlp", "num_experts", "intermediate_size", "gate_proj up_proj down_proj"),
        _olmoe_plain,
    ),
    "minimax_m2": Architecture(
        _BASE
        | _ROUTED
        | {"architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2"}
        | {"num_local_experts": 4, "rotary_dim": 64, "use_qk_norm": True, "rope_theta": 1e6}
        | {"qk_norm_type": "per_layer", "scoring_func": "sigmoid", "use_routing_bias": True},
        _experts("block_sparse_moe", "num_local_experts", "intermediate_size", "w1 w3 w2"),
        _minimax_plain,
        frozenset({"e_score_correction_bias"}),
    ),
    "gpt_oss": Architecture(
        _BASE
        | _ROUTED
        | _SLIDING
        | {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "head_dim": 64}
        | {"num_local_experts": 4, "experts_per_token": 2, "intermediate_size": 384}
        | {"attention_bias": True, "swiglu_limit": 7.0, "rope_theta": 150000},
        _nothing,
        _gpt_oss,
    ),
    "gemma3": Architecture(
        _BASE
        | _SLIDING
        | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
        | {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 128}
        | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "tie_word_embeddings": True},
        _dense,
        _gemma_plain,
    ),
    "deepseek_v32": Architecture(
        _LATENT | {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"},
        _latent,
        _latent_plain,
        frozenset({"e_score_correction_bias"}),
    ),
    "glm_moe_dsa": Architecture(
        _LATENT | {"architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa"},
        _latent,
        _latent_plain,
        frozenset({"e_score_correction_bias"}),
    ),
    "qwen3_5_moe": Architecture(
        _BASE
        | _ROUTED
        | {"architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text"}
        | {"num_experts": 4, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}
        | {"linear_num_value_heads": 8, "linear_num_key_heads": 4, "linear_conv_kernel_dim": 4}
        | {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
        | {"layer_types": ["linear_attention", "full_attention"], "full_attention_interval": 2}
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
            }
        },
        _nothing,
        _both(_ends, _norms, _qwen35),
        frozenset({"A_log"}),
        {"mamba_radix_cache_strategy": "no_buffer", "disable_overlap_schedule": True},
    ),
}
"""By name. Gpt-oss has no FP8 blocks, and Qwen3.5 is taken in BF16."""

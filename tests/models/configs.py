"""Small configurations of every architecture that comes with tranship, as config.json has them."""

import json
from pathlib import Path
from typing import Any

Config = dict[str, Any]

FP8: Config = {
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
    }
}

_DENSE: Config = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}

_ROUTED: Config = {
    "moe_intermediate_size": 512,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "rope_theta": 10000,
    "num_nextn_predict_layers": 0,
}

CONFIGS: dict[str, Config] = {
    "qwen3": _DENSE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "llama": _DENSE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen3_moe": _DENSE
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 256,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "glm4_moe": _DENSE
    | _ROUTED
    | {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "attention_bias": True,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
    },
    "deepseek_v3": _DENSE
    | _ROUTED
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "q_lora_rank": 256,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "num_key_value_heads": 8,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 4,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 64,
            "type": "yarn",
        },
    },
}
"""By architecture. Hidden sizes are multiples of the block; 1000 rows of vocabulary get padded."""


def write_config(folder: Path, name: str, **changes: object) -> str:
    """Write a configuration with some fields changed, and return its path."""
    path = folder / "config.json"
    path.write_text(json.dumps(CONFIGS[name] | changes))
    return str(path)

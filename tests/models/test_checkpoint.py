"""Names and shapes of the architectures against the models of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.configs import CONFIGS
from tests.models.produced import made
from tranship.schema.expand import expand

transformers: Any = pytest.importorskip("transformers")

Shapes = dict[str, tuple[int, ...]]


def separate(name: str, shape: tuple[int, ...]) -> Shapes:
    """Undo what transformers 5 does to a checkpoint's experts when it loads them."""
    prefix, _, last = name.rpartition(".")
    if len(shape) != 3:
        return {name: shape}
    experts, rows, columns = shape
    parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
    return {
        f"{prefix}.{expert}.{part}.weight": (rows // len(parts), columns)
        for expert in range(experts)
        for part in parts
    }


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in CONFIGS),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 48}),
        ("qwen3", {"attention_bias": True}),
        ("qwen3_moe", {"mlp_only_layers": [1]}),
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("glm4_moe", {"use_qk_norm": False, "n_shared_experts": 2}),
        ("deepseek_v3", {"q_lora_rank": None, "first_k_dense_replace": 2}),
        ("qwen3", {"tie_word_embeddings": True}),
    ],
)
def test_an_architecture_has_the_tensors_of_the_model(
    tmp_path: Path, name: str, changes: dict[str, Any]
):
    fields = CONFIGS[name] | changes
    config = transformers.AutoConfig.for_model(
        **{k: v for k, v in fields.items() if k != "torch_dtype"}
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    held = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if fields["tie_word_embeddings"]:
        del held["lm_head.weight"]
    expected: Shapes = {}
    for key, shape in held.items():
        expected |= separate(key, shape)
    manifest = made(tmp_path, name, "checkpoint", **changes)
    declaration = expand(manifest)
    assert {tensor.name: tensor.shape for tensor in declaration.tensors} == expected
    assert {buffer.name: buffer.shape for buffer in declaration.buffers} == expected

"""What holds of every manifest that is made offline."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.models.configs import CONFIGS, FP8, write_config
from tests.models.produced import made
from tranship.models.launch import launch_arguments
from tranship.models.produce import Request, produce
from tranship.models.registry import architectures, layouts
from tranship.schema.check import check_manifest
from tranship.schema.codec import dump, load
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, ModuleFamily, Quantization, Side
from tranship.schema.records import QuantizationRecord

OPTIONS: dict[str, list[dict[str, int]]] = {
    "checkpoint": [{}],
    "fsdp": [{"shard_size": 3}, {"shard_size": 4, "replicate_size": 2, "stacked_experts": 1}],
    "megatron": [
        {"world_size": 1},
        {"world_size": 4, "tensor_model_parallel_size": 2, "pipeline_layers": 3},
    ],
    "sglang": [
        {},
        {"tp_size": 2, "replicas": 2},
        {"tp_size": 2, "disable_shared_experts_fusion": 1},
    ],
    "vllm": [{}, {"tensor_parallel_size": 2, "replicas": 2}],
}
SPREAD = {
    "megatron": {"world_size": 8, "expert_model_parallel_size": 4, "tensor_model_parallel_size": 2}
    | {"expert_tensor_parallel_size": 1},
    "sglang": {"tp_size": 4, "ep_size": 2, "dp_size": 2, "enable_dp_attention": 1},
    "vllm": {"tensor_parallel_size": 2, "data_parallel_size": 2, "enable_expert_parallel": 1},
}
CAN_QUANTIZE = {"checkpoint", "sglang", "vllm"}
ROUTED = {"qwen3_moe", "glm4_moe", "deepseek_v3"}

CASES = [
    (name, layout, options, fp8)
    for name, layout in product(CONFIGS, OPTIONS)
    for options in [*OPTIONS[layout], *([SPREAD[layout]] if layout in SPREAD else [])]
    for fp8 in (False, True)
    if (not fp8 or layout in CAN_QUANTIZE) and (options is not SPREAD.get(layout) or name in ROUTED)
]


def test_all_data_files_are_covered():
    assert set(architectures()) == CONFIGS.keys()
    assert set(layouts()) == OPTIONS.keys()


@pytest.mark.parametrize(("name", "layout", "options", "fp8"), CASES)
def test_a_manifest_is_valid_and_its_own_canonical_form(
    tmp_path: Path, name: str, layout: str, options: dict[str, int], fp8: bool
):
    manifest = made(tmp_path, name, layout, options, fp8=fp8)
    assert check_manifest(manifest) == ()
    path = tmp_path / "manifest.json"
    path.write_bytes(dump(manifest))
    assert load(path, Manifest).value == manifest
    assert (manifest.quantization is not None) == fp8
    declaration = expand(manifest)
    assert expand(fold(declaration)) == declaration


def test_the_side_can_be_chosen(tmp_path: Path):
    config = write_config(tmp_path, "qwen3")
    for side in Side:
        assert produce(Request("qwen3", config, "checkpoint", {}, None, side)).side is side


def test_a_manifest_does_not_grow_with_experts_layers_or_ranks(tmp_path: Path):
    small = made(tmp_path, "deepseek_v3", "sglang", {"tp_size": 4, "ep_size": 4})
    sizes: dict[str, Any] = {
        "num_hidden_layers": 90,
        "n_routed_experts": 1024,
        "num_attention_heads": 512,
    }
    large = made(
        tmp_path,
        "deepseek_v3",
        "sglang",
        {"tp_size": 512, "ep_size": 512, "dp_size": 512, "enable_dp_attention": 1}
        | {"moe_dense_tp_size": 1},
        **sizes,
    )
    assert len(dump(large)) < 1.1 * len(dump(small))


def test_attention_data_parallelism_has_two_spellings(tmp_path: Path):
    old = {"tp_size": 4, "ep_size": 4, "dp_size": 2, "enable_dp_attention": 1}
    new = {"tp_size": 4, "ep_size": 4, "attn_dp_size": 2}
    first, second = (made(tmp_path, "deepseek_v3", "sglang", options) for options in (old, new))
    assert first.buffers == second.buffers
    assert launch_arguments(second, "m.json") == "--tp-size 4 --ep-size 4 --attn-dp-size 2".split()


def test_fusing_the_shared_expert_makes_it_one_more_expert(tmp_path: Path):
    manifest = made(tmp_path, "deepseek_v3", "sglang", {"tp_size": 2}, n_routed_experts=256)
    held = {buffer.name: buffer for buffer in expand(manifest, [1]).buffers}
    stacked = held["model.layers.1.mlp.experts.w13_weight"]
    assert stacked.shape == (257, 512, 384)
    last = [piece for piece in stacked.pieces if "shared" in piece.tensor]
    assert [(piece.start, piece.offset) for piece in sorted(last)] == [
        ((256, 0), 256 * 512 * 384),
        ((256, 0), 256 * 512 * 384 + 256 * 384),
    ]
    assert "model.layers.1.mlp.shared_experts.down_proj.weight" not in held
    apart = {"tp_size": 2, "disable_shared_experts_fusion": 1}
    names = {b.name for b in expand(made(tmp_path, "deepseek_v3", "sglang", apart), [0]).buffers}
    assert "model.layers.1.mlp.shared_experts.down_proj.weight" in names


def test_power_of_two_scales_are_asked_for_or_come_from_the_config(tmp_path: Path):
    plain = write_config(tmp_path, "qwen3")
    asked = produce(Request("qwen3", plain, "sglang", {}, "fp8-block128-ue8m0"))
    values = {b.encoding.scale_values for b in expand(asked).buffers if b.encoding.block}
    assert values == {"power_of_two"}
    config = FP8["quantization_config"] | {"scale_fmt": "ue8m0"}
    assert made(tmp_path, "qwen3", "sglang", quantization_config=config) == asked


def test_unquantized_modules_are_listed(tmp_path: Path):
    listed = FP8["quantization_config"] | {"modules_to_not_convert": ["model.layers.1.mlp"]}
    manifest = made(tmp_path, "qwen3_moe", "sglang", quantization_config=listed)
    assert manifest.quantization == Quantization(
        method="fp8-block128",
        unquantized=(
            ModuleFamily(name="model.embed_tokens"),
            ModuleFamily(name="model.layers.{layer}.mlp.gate", indices={"layer": "0..2"}),
            *(
                ModuleFamily(
                    name=f"model.layers.{{layer}}.mlp.experts.{{expert}}.{part}_proj",
                    indices={"layer": "1", "expert": "0..3"},
                )
                for part in ("gate", "up", "down")
            ),
            ModuleFamily(name="lm_head"),
        ),
    )


def test_launch_arguments_tell_the_engine_what_the_manifest_says(tmp_path: Path):
    listed = FP8["quantization_config"] | {"modules_to_not_convert": ["model.layers.1.mlp"]}
    options = {"tp_size": 2, "ep_size": 2, "enable_dp_attention": 0, "replicas": 2}
    manifest = made(tmp_path, "qwen3_moe", "sglang", options, quantization_config=listed)
    *arguments, text = launch_arguments(manifest, "m.json")
    flags = "--tp-size 2 --ep-size 2 --quantization fp8 --json-model-override-args"
    assert arguments == flags.split()
    config = json.loads(text)["quantization_config"]
    assert config.pop("modules_to_not_convert") == [
        "model.embed_tokens",
        *(f"model.layers.{layer}.mlp.gate" for layer in range(3)),
        "model.layers.1.mlp.experts",
        "lm_head",
    ]
    assert config == FP8["quantization_config"]


def test_a_manifest_in_the_engines_own_config_is_the_same(tmp_path: Path):
    manifest = made(tmp_path, "glm4_moe", "sglang", {"tp_size": 2}, fp8=True)
    override = json.loads(launch_arguments(manifest, "m.json")[-1])
    again = made(tmp_path, "glm4_moe", "sglang", {"tp_size": 2}, **override)
    assert again == manifest


def test_vllm_has_flags_of_its_own(tmp_path: Path):
    options = {"tensor_parallel_size": 2, "enable_expert_parallel": 1}
    manifest = made(tmp_path, "qwen3_moe", "vllm", options)
    arguments = ["--tensor-parallel-size", "2", "--enable-expert-parallel"]
    assert launch_arguments(manifest, "m.json") == arguments


@pytest.mark.parametrize("change", ["framework", "none", "method"])
def test_manifests_from_which_no_arguments_follow(tmp_path: Path, change: str):
    manifest = made(tmp_path, "qwen3", "sglang", fp8=True)
    if change == "framework":
        manifest = made(tmp_path, "qwen3", "checkpoint")
    elif change == "none":
        manifest = manifest.model_copy(update={"framework": None})
    else:
        own = Quantization(method="int4")
        manifest = manifest.model_copy(update={"quantization": own})
    with pytest.raises(DiagnosticError, match="TS761"):
        launch_arguments(manifest, "m.json")


def test_records_carry_the_quantization(tmp_path: Path):
    manifest = made(tmp_path, "qwen3_moe", "checkpoint", fp8=True)
    names = ("lm_head", "model.embed_tokens", *(f"model.layers.{n}.mlp.gate" for n in range(3)))
    assert expand(manifest).quantization == QuantizationRecord("fp8-block128", names)

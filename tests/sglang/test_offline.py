"""Offline manifests against what real SGLang models load, tensor by tensor."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.models.configs import CONFIGS, FP8, write_config
from tests.sglang.test_trace import pytestmark, run
from tranship.models.launch import launch_arguments
from tranship.models.produce import Request, produce
from tranship.runtime.frameworks.tracing.request import Answer, TraceRequest
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest
from tranship.schema.records import BufferRecord, Declaration

__all__ = ["pytestmark"]


def traced(folder: Path, config: str, checkpoint: Manifest, **asked: Any) -> Declaration:
    """Trace one rank of the engine that loads a checkpoint."""
    rank = asked.pop("rank")
    sources = {b.name: (b.dtype, b.shape) for b in expand(checkpoint).buffers}
    request = TraceRequest(
        folder=Path(config).parent, ranks=(rank,), sources=sources, output=folder, **asked
    )
    path = folder / "request.json"
    path.write_text(request.model_dump_json())
    done = run("-m", "tranship.runtime.frameworks.sglang.trace", path)
    assert done.returncode == 0, done.stderr
    found = Answer.model_validate_json((folder / f"{rank}.json").read_text())
    assert found.manifest is not None, found.findings
    return expand(Manifest.model_validate_json(found.manifest))


def comparable(record: BufferRecord) -> BufferRecord:
    """Leave out of a buffer why no update changes it, which is for people."""
    return replace(record, role=replace(record.role, reason=""))


def derived(declaration: Declaration) -> set[str]:
    """Name the buffers that the engine makes of others."""
    return {b.name for b in declaration.buffers if b.role.kind == "derived"}


@pytest.mark.parametrize(
    ("name", "fp8", "tp", "ep", "rank", "options", "changes"),
    [
        ("qwen3", True, 1, 1, 0, {}, {}),
        ("qwen3", True, 4, 1, 3, {}, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("qwen3", False, 2, 1, 1, {}, {"attention_bias": True}),
        ("llama", False, 2, 1, 1, {}, {"attention_bias": True, "head_dim": 64}),
        ("qwen3_moe", True, 4, 2, 2, {}, {}),
        ("qwen3_moe", True, 4, 4, 3, {"dp_size": 4, "enable_dp_attention": True}, {}),
        ("qwen3_moe", False, 2, 1, 1, {}, {}),
        ("glm4_moe", True, 2, 2, 1, {}, {}),
        ("glm4_moe", False, 4, 1, 2, {}, {"n_shared_experts": 2}),
        ("deepseek_v3", True, 2, 2, 1, {}, {}),
        (
            "deepseek_v3",
            True,
            4,
            2,
            3,
            {"dp_size": 2, "enable_dp_attention": True, "moe_dense_tp_size": 1},
            {},
        ),
        (
            "deepseek_v3",
            False,
            4,
            1,
            1,
            {"dp_size": 4, "enable_dp_attention": True, "enable_dp_lm_head": True},
            {"q_lora_rank": None},
        ),
    ],
)
def test_an_offline_manifest_is_what_the_engine_loads(
    tmp_path: Path,
    name: str,
    fp8: bool,
    tp: int,
    ep: int,
    rank: int,
    options: dict[str, Any],
    changes: dict[str, Any],
):
    config = write_config(tmp_path, name, **changes, **(FP8 if fp8 else {}))
    checkpoint = produce(Request(name, config, "checkpoint", {}))
    theirs = traced(tmp_path, config, checkpoint, tp=tp, ep=ep, rank=rank, arguments=options)
    texts = {key: str(value).lower() for key, value in options.items()}
    sizes = {"tp_size": str(tp), "ep_size": str(ep), "device": "cpu"}
    ours = expand(produce(Request(name, config, "sglang", sizes | texts)), [rank])
    assert ours.tensors == theirs.tensors
    # Of FP8 a CPU engine derives FP8 with one scale, a GPU's BF16.
    left_out = derived(theirs) | derived(ours) if fp8 else set[str]()
    held = {b.name: comparable(b) for b in ours.buffers if b.name not in left_out}
    for buffer in theirs.buffers:
        if buffer.name not in left_out:
            assert held.pop(buffer.name) == comparable(buffer)
    assert not held
    layers = CONFIGS[name]["num_hidden_layers"]
    assert len(derived(ours)) == (2 * layers if name == "deepseek_v3" else 0)
    assert {b.role.recipe for b in ours.buffers} == {b.role.recipe for b in theirs.buffers}


PARSER = """
import argparse, json, sys
from tranship.runtime.frameworks.sglang import boot
from tranship.runtime.frameworks.tracing import stand_ins
stand_ins.install(boot.STAND_INS)
from sglang.srt.server_args import ServerArgs

parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
parsed = vars(parser.parse_args(["--model-path", "model", *sys.argv[2:]]))
print(json.dumps([parsed[name] for name in sys.argv[1].split()]))
"""


def test_the_engine_takes_the_launch_arguments(tmp_path: Path):
    options: dict[str, Any] = {
        **{"tp_size": 8, "attn_dp_size": 4, "dp_size": 1, "enable_dp_attention": True},
        **{"enable_dp_lm_head": True, "moe_dense_tp_size": 1, "moe_a2a_backend": "deepep"},
        **{"ep_size": 8, "disable_shared_experts_fusion": True, "device": "cuda"},
    }
    config = write_config(tmp_path, "deepseek_v3", **FP8)
    texts = {key: str(value) for key, value in options.items()}
    manifest = produce(Request("deepseek_v3", config, "sglang", texts))
    arguments = launch_arguments(manifest, "engine.json")
    names = [*options, "quantization", "json_model_override_args"]
    done = run("-c", PARSER, " ".join(names), *arguments)
    assert done.returncode == 0, done.stderr
    *parsed, override = json.loads(done.stdout.splitlines()[-1])
    assert dict(zip(names, parsed, strict=False)) == options | {"quantization": "fp8"}
    path = write_config(tmp_path, "deepseek_v3", **json.loads(override))
    assert produce(Request("deepseek_v3", path, "sglang", texts)) == manifest


def test_modules_that_the_config_leaves_alone_are_plain_in_the_engine(tmp_path: Path):
    ignored = ["model.layers.1.self_attn", "model.layers.0.mlp", "o_proj"]
    config = FP8["quantization_config"] | {"modules_to_not_convert": ignored}
    path = write_config(tmp_path, "qwen3_moe", quantization_config=config)
    checkpoint = produce(Request("qwen3_moe", path, "checkpoint", {}))
    theirs = traced(tmp_path, path, checkpoint, tp=2, ep=1, rank=0, arguments={})
    options = {"tp_size": "2", "device": "cpu"}
    ours = expand(produce(Request("qwen3_moe", path, "sglang", options)), [0])
    assert [comparable(b) for b in ours.buffers] == [comparable(b) for b in theirs.buffers]
    plain = {b.name for b in ours.buffers if b.encoding.kind == "plain"}
    assert {
        "model.layers.0.mlp.experts.w13_weight",
        "model.layers.2.self_attn.o_proj.weight",
    } < plain
    assert "model.layers.2.mlp.experts.w13_weight" not in plain

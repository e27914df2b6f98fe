"""`tranship trace` on real SGLang models, as a person calls it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models.configs import FP8, write_config
from tests.sglang.load import write_tensors
from tests.sglang.test_trace import pytestmark
from tranship.models.produce import Request, produce
from tranship.runtime.dtypes import torch_dtype
from tranship.schema.codec import dump, load
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest

__all__ = ["pytestmark"]

ROOT = Path(__file__).parents[2]
ODD = {"hidden_size": 448}


def trace(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tranship", "trace", "sglang", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_all_ranks_are_traced_and_a_change_of_the_engine_is_told(tmp_path: Path) -> None:
    config, output = write_config(tmp_path, "qwen3_moe"), tmp_path / "engine.json"
    asked = ("-c", config, "--tp", 2, "--ep", 2, "--quantization", "fp8-block128")
    done = trace(*asked, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "2 ranks traced" in done.stdout
    traced = load(output, Manifest).value
    options = {"tp_size": "2", "ep_size": "2", "device": "cpu"}
    offline = produce(Request("qwen3_moe", config, "sglang", options, "fp8-block128"))
    theirs, ours = expand(traced), expand(offline)
    assert theirs.tensors == ours.tensors
    assert theirs.quantization == ours.quantization
    assert [b.name for b in theirs.buffers] == [b.name for b in ours.buffers]
    same = trace(*asked, "--check", output)
    assert (same.returncode, "no change" in same.stdout) == (0, True)
    other = trace("-c", config, "--tp", 2, "--quantization", "fp8-block128", "--check", output)
    assert other.returncode == 3


def test_some_of_many_ranks_tell_what_all_hold(tmp_path: Path) -> None:
    sizes = {"vocab_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32}
    config = write_config(tmp_path, "qwen3_moe", **sizes, num_experts=64)
    output = tmp_path / "engine.json"
    done = trace("-c", config, "--tp", 32, "--ep", 32, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "10 ranks traced" in done.stdout
    assert "22 derived of them" in done.stdout
    traced = load(output, Manifest).value
    options = {"tp_size": "32", "ep_size": "32", "device": "cpu"}
    offline = produce(Request("qwen3_moe", config, "sglang", options))
    assert expand(traced).tensors == expand(offline).tensors
    plain = [replace(b, role=replace(b.role, reason="")) for b in expand(offline).buffers]
    assert [replace(b, role=replace(b.role, reason="")) for b in expand(traced).buffers] == plain
    assert traced.framework is not None
    assert traced.framework.traced == "0..2,4..16:4,23..31:4"


def test_scales_that_the_engine_drops_are_reported_with_what_was_not_read(tmp_path: Path) -> None:
    config = write_config(tmp_path, "llama", **FP8)
    done = trace("-c", config, "-o", tmp_path / "engine.json")
    assert done.returncode == 1
    assert "TS850" in done.stderr
    assert "nothing writes model.layers.0.self_attn.qkv_proj.weight_scale_inv" in done.stderr
    assert "model.layers.0.self_attn.q_proj.weight_scale_inv" in done.stderr
    assert not (tmp_path / "engine.json").exists()


def test_a_folder_of_safetensors_names_the_tensors(tmp_path: Path) -> None:
    config = write_config(tmp_path, "qwen3")
    checkpoint = expand(produce(Request("qwen3", config, "checkpoint", {}))).buffers
    tensors = {b.name: torch.zeros(b.shape, dtype=torch_dtype(b.dtype)) for b in checkpoint}
    write_tensors(tensors, tmp_path / "model.safetensors")
    by_files, by_data = tmp_path / "files.json", tmp_path / "data.json"
    for arguments, output in (((), by_files), (("-a", "qwen3"), by_data)):
        done = trace("-c", tmp_path, *arguments, "-o", output)
        assert done.returncode == 0, done.stderr
    assert by_files.read_bytes() == by_data.read_bytes()


def test_a_manifest_that_names_the_tensors_must_be_right_and_of_one_rank(tmp_path: Path) -> None:
    config, file = write_config(tmp_path, "qwen3"), tmp_path / "checkpoint.json"
    asked = ("-c", config, "--sources", file, "-o", tmp_path / "engine.json")
    fields = json.loads(dump(produce(Request("qwen3", config, "checkpoint", {}))))
    file.write_text(json.dumps(fields))
    assert trace(*asked).returncode == 0
    (tmp_path / "engine.json").unlink()
    fields["buffers"][0]["shape"][0] = "nothing + 1"
    file.write_text(json.dumps(fields))
    damaged = trace(*asked)
    assert (damaged.returncode, "error[TS1" in damaged.stderr) == (1, True), damaged.stderr
    options = {"shard_size": "4"}
    file.write_bytes(dump(produce(Request("qwen3", config, "fsdp", options))))
    split = trace(*asked)
    assert (split.returncode, "TS857" in split.stderr) == (1, True), split.stderr
    assert not (tmp_path / "engine.json").exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"architectures": ["NobodyForCausalLM"]}, "TS856"), ({"model_type": "nobody"}, "TS857")],
)
def test_a_model_that_cannot_be_had_is_refused(
    tmp_path: Path, changes: dict[str, object], code: str
) -> None:
    config = Path(write_config(tmp_path, "qwen3"))
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    done = trace("-c", config, "-o", tmp_path / "engine.json")
    assert (done.returncode, code in done.stderr) == (1, True), done.stderr


def test_scales_are_declared_as_deepgemm_reads_them_where_it_runs(tmp_path: Path) -> None:
    # Of 448 columns DeepGEMM makes no blocks.
    config, output = write_config(tmp_path, "qwen3", **FP8, **ODD), tmp_path / "engine.json"
    asked = ("-c", config, "--deepgemm", "packed", "-o", output)
    elsewhere = trace(*asked, "--option", "fp8_gemm_runner_backend=triton")
    assert (elsewhere.returncode, "error[TS859]" in elsewhere.stderr) == (1, True)
    assert not output.exists()
    unknown = trace("-c", config, "--deepgemm", "f32", "-o", output)
    assert (unknown.returncode, "none of power_of_two, packed" in unknown.stderr) == (2, True)
    done = trace(*asked)
    assert done.returncode == 0, done.stderr
    held = load(output, Manifest).value.buffers
    packed = {b.name.split(".")[-2] for b in held if b.layout == "deepgemm_mn_major_ue8m0"}
    assert packed == {"o_proj", "down_proj"}
    changed = trace("-c", config, "--check", output)
    assert (changed.returncode, "deepgemm_mn_major_ue8m0" in changed.stdout) == (3, True)
    assert trace(*asked[:-2], "--check", output).returncode == 0

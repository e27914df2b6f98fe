"""`tranship trace` on real vLLM models, as a person calls it."""

import subprocess
import sys
from pathlib import Path

from tests.models.configs import FP8, write_config
from tests.vllm.cases import Case
from tests.vllm.marks import NEEDS_VLLM
from tranship.schema.codec import load
from tranship.schema.manifest import Manifest

pytestmark = NEEDS_VLLM

ROOT = Path(__file__).parents[2]


def trace(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tranship", "trace", "vllm", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_all_ranks_are_traced_and_the_same_engine_is_recognized(tmp_path: Path) -> None:
    config, output = write_config(tmp_path, "qwen3"), tmp_path / "engine.json"
    asked = ("-c", config, "-a", "qwen3", "--tp", 2, "--quantization", "fp8-block128")
    done = trace(*asked, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "2 ranks traced" in done.stdout
    same = trace(*asked, "--check", output)
    assert (same.returncode, "no change" in same.stdout) == (0, True)


def test_routers_that_vllm_quantizes_without_scales_are_reported(tmp_path: Path) -> None:
    config = write_config(tmp_path, "qwen3_moe", **FP8)
    done = trace("-c", config, "-o", tmp_path / "engine.json")
    assert done.returncode == 1
    assert "nothing writes model.layers.0.mlp.gate.weight_scale_inv" in done.stderr
    assert "model.layers.0.mlp.gate.weight holds codes" in done.stderr


def test_what_makes_other_ranks_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, "qwen3_moe")
    asked = ("-c", config, "--tp", 4, "-o", tmp_path / "engine.json")
    odd = trace(*asked, "--ep", 2)
    assert (odd.returncode, "--ep is 1 or what --tp is" in odd.stderr) == (2, True)
    twice = trace(*asked, "--option", "tensor_parallel_size=2")
    assert (twice.returncode, "--tp and --ep say" in twice.stderr) == (2, True)
    staged = trace("-c", config, "-o", tmp_path / "e.json", "--option", "pipeline_parallel_size=2")
    assert (staged.returncode, "TS856" in staged.stderr) == (1, True)
    assert "tensor parallelism alone is traced" in staged.stderr


def test_experts_that_kernels_would_have_padded_are_refused(tmp_path: Path) -> None:
    config = Case("qwen3_moe", True, 4, 1).write(tmp_path)
    asked = ("-c", config, "-a", "qwen3_moe", "--tp", 4, "-o", tmp_path / "engine.json")
    padded = trace(*asked, "--option", "moe_backend=deep_gemm")
    said = " ".join(padded.stderr.split())
    assert (padded.returncode, "64 columns, no whole blocks" in said) == (1, True)
    assert trace(*asked).returncode == 0


def test_linear_layers_that_deepgemm_does_not_read_keep_their_scales(tmp_path: Path) -> None:
    config = Case("qwen3", True, 1, 1, {"hidden_size": 448}).write(tmp_path)
    output = tmp_path / "engine.json"
    asked = ("-c", config, "-a", "qwen3", "--deepgemm", "packed", "-o", output)
    done = trace(*asked)
    assert done.returncode == 0, done.stderr
    held = load(output, Manifest).value.buffers
    packed = {b.name.split(".")[-2] for b in held if b.layout == "deepgemm_mn_major_ue8m0"}
    assert packed == {"o_proj", "down_proj"}
    elsewhere = trace(*asked, "--option", "linear_backend=triton")
    assert (elsewhere.returncode, "error[TS859]" in elsewhere.stderr) == (1, True)

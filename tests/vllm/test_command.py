"""`tranship trace` on real vLLM models, as a person calls it."""

import subprocess
import sys
from pathlib import Path

from tests.models.configs import FP8, write_config
from tests.vllm.marks import NEEDS_VLLM

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

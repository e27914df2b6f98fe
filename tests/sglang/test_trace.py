"""Traces of real SGLang models against what the models' own code loads."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from tests.sglang.configs import CONFIGS, checkpoint_tensors, random_checkpoint
from tests.sglang.load import read_tensors, write_tensors
from tests.sglang.replay import bits, replayed
from tranship.runtime.dtypes import torch_dtype
from tranship.schema.codec import load
from tranship.schema.expand import expand
from tranship.schema.manifest import Axis, Manifest
from tranship.schema.records import Declaration, TensorRecord

try:
    version("sglang")
    missing = False
except PackageNotFoundError:
    missing = True

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(missing, reason="SGLang is not installed"),
]

FOLDER = Path(__file__).parent

BOTH_SCRIPTS = """
import pathlib, sys
from tests.sglang import configs, load, trace
from tranship.runtime.frameworks.sglang.boot import Place

config = configs.CONFIGS[sys.argv[1]]
place = Place(*map(int, sys.argv[2:5]))
checkpoint, manifest, loaded = map(pathlib.Path, sys.argv[5:])
model_config = trace.become(config, place)
trace.write_manifest(model_config, config, place, manifest)
load.write_loaded(model_config, checkpoint, loaded)

from sglang.srt.runtime_context import get_parallel
print(get_parallel().tp_rank, get_parallel().moe_ep_rank, get_parallel().moe_tp_rank)
"""
"""Most of a script's time goes into imports."""


def finding_tests() -> dict[str, str]:
    """Return an environment in which Python finds the tests, and all that it finds here."""
    path = os.pathsep.join(filter(None, [str(FOLDER.parents[1]), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that finds the tests, and return how it ended."""
    environment = finding_tests()
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def check(manifest: Path, checkpoint: dict[str, torch.Tensor], loaded: Path) -> Declaration:
    """Compare all that one rank holds with what its manifest says, byte by byte."""
    declaration, held = expand(load(manifest, Manifest).value), read_tensors(loaded)
    assert {buffer.name for buffer in declaration.buffers} == held.keys()
    for buffer in declaration.buffers:
        tensor = held[buffer.name]
        assert (torch_dtype(buffer.dtype), buffer.shape) == (tensor.dtype, tuple(tensor.shape))
        match buffer.role.kind:
            case "transfer":
                assert torch.equal(bits(replayed(buffer, checkpoint)), bits(tensor)), buffer.name
            case "alias":
                assert torch.equal(bits(held[buffer.role.of]), bits(tensor)), buffer.name
            case kind:
                assert (kind, buffer.name.rpartition(".")[2]) == ("constant", "cos_sin_cache")
    return declaration


@pytest.mark.parametrize(
    ("name", "tp", "ep", "rank", "coordinates"),
    [
        ("qwen3", 2, 1, 0, {"tp": 0}),
        ("qwen3", 2, 1, 1, {"tp": 1}),
        ("qwen3_tied", 4, 1, 1, {"tp": 1}),  # shares a key-value head with rank 0
        ("qwen3_tied", 4, 1, 3, {"tp": 3}),
        ("qwen3_moe", 2, 1, 0, {"tp": 0}),
        ("qwen3_moe", 2, 1, 1, {"tp": 1}),
        ("qwen3_moe", 2, 2, 0, {"tp": 0, "ep": 0}),
        ("qwen3_moe", 2, 2, 1, {"tp": 1, "ep": 1}),
        ("qwen3_moe", 4, 2, 2, {"tp": 2, "ep": 1, "moe_tp": 0}),
    ],
)
def test_a_declared_rank_holds_what_sglang_loads(
    tmp_path: Path, name: str, tp: int, ep: int, rank: int, coordinates: dict[str, int]
):
    checkpoint = random_checkpoint(CONFIGS[name], seed=rank)
    files = [tmp_path / file for file in ("in.safetensors", "rank.json", "out.safetensors")]
    write_tensors(checkpoint, files[0])
    done = run("-c", BOTH_SCRIPTS, name, tp, ep, rank, *files)
    assert done.returncode == 0, done.stderr
    declaration = check(files[1], checkpoint, files[2])
    assert (declaration.world_size, declaration.ranks) == (tp, (rank,))
    found = {axis.name: rank // axis.stride % axis.size for axis in declaration.axes}
    assert found == coordinates
    told = zip(("tp", "ep", "moe_tp"), done.stdout.split()[-3:], strict=True)
    assert found.items() <= {(axis, int(coordinate)) for axis, coordinate in told}


def test_the_scripts_trace_and_load_a_model_that_is_not_quantized(tmp_path: Path):
    checkpoint = random_checkpoint(CONFIGS["qwen3_bf16"], seed=0)
    manifest, given, loaded = (tmp_path / name for name in ("m.json", "i.st", "o.st"))
    write_tensors(checkpoint, given)
    for script, *files in (("trace.py", manifest), ("load.py", given, loaded)):
        done = run(FOLDER / script, "qwen3_bf16", "--tp", 1, *files)
        assert done.returncode == 0, done.stderr
    declaration = check(manifest, checkpoint, loaded)
    assert declaration.axes == (Axis(name="tp", size=1, stride=1),)
    assert declaration.tensors == tuple(
        sorted(TensorRecord(name, tuple(tensor.shape)) for name, tensor in checkpoint.items())
    )


def test_a_head_that_sglang_leaves_unwritten_is_refused(tmp_path: Path):
    assert "lm_head.weight" not in checkpoint_tensors(CONFIGS["qwen3_moe_tied"])
    done = run(FOLDER / "trace.py", "qwen3_moe_tied", tmp_path / "manifest.json")
    assert done.returncode != 0
    assert "nothing writes lm_head.weight" in done.stderr
    assert not (tmp_path / "manifest.json").exists()

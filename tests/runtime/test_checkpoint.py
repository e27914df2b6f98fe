"""A folder of safetensors files as a sender."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.models.configs import FP8, write_config
from tests.sglang.configs import random_values
from tests.sglang.load import write_tensors
from tranship.models.produce import Request, produce
from tranship.runtime.bind import bind
from tranship.runtime.frameworks.checkpoint import checkpoint_declaration, map_checkpoint
from tranship.runtime.frameworks.tracing.sources import find_safetensors, on_meta, read_headers
from tranship.schema.codec import load
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Side

ROOT = Path(__file__).parents[2]


def checkpoint(folder: Path) -> tuple[Manifest, dict[str, torch.Tensor]]:
    """Write a model in two files; return the offline manifest of them, and the tensors."""
    config = write_config(folder, "qwen3_moe", **FP8)
    offline = produce(Request("qwen3_moe", config, "checkpoint", {}))
    sources = {b.name: (b.dtype, b.shape) for b in expand(offline).buffers}
    tensors = random_values(on_meta(sources), seed=1)
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        write_tensors({name: tensors[name] for name in part}, folder / f"{number}.safetensors")
    return offline, tensors


def test_the_headers_of_files_declare_what_the_offline_manifest_does(tmp_path: Path) -> None:
    offline, _ = checkpoint(tmp_path)
    output = tmp_path / "sender.json"
    command = [sys.executable, "-m", "tranship", "trace", "checkpoint", "-c", str(tmp_path)]
    done = subprocess.run(
        [*command, "-o", str(output)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, wanted = expand(load(output, Manifest).value), expand(offline)
    assert found.buffers == wanted.buffers
    assert found.tensors == wanted.tensors
    assert found.quantization == wanted.quantization


def test_mapped_files_are_the_memory_of_a_sender(tmp_path: Path) -> None:
    offline, tensors = checkpoint(tmp_path)
    live = map_checkpoint(tmp_path)
    bound = bind(live, offline, Side.SENDER, 0)
    assert bound.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(bound.tensors[name].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"a.weight": (DType.F8E4M3FN, (256, 128))}, "a.weight holds codes"),
        (
            {
                "a.weight": (DType.F8E4M3FN, (256, 128)),
                "a.weight_scale_inv": (DType.F32, (1, 1)),
            },
            "a.weight_scale_inv does not hold one scale per block",
        ),
        ({"a.weight_scale_inv": (DType.F32, (1, 1))}, "a.weight_scale_inv does not hold"),
    ],
)
def test_codes_and_scales_must_go_together(
    sources: dict[str, tuple[DType, tuple[int, ...]]], message: str
) -> None:
    with pytest.raises(DiagnosticError, match=message) as raised:
        checkpoint_declaration(sources, block=(128, 128))
    assert {found.code for found in raised.value.diagnostics} == {"TS852"}


def test_a_folder_without_files_has_nothing(tmp_path: Path) -> None:
    assert read_headers(find_safetensors(tmp_path)) == {}

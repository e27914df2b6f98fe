"""The examples with real frameworks run as their pages say, and their check can fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

# Examples are not installed with tranship.
sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.live.check import raw, verdict
from tests.examples.catalog import EXAMPLES
from tests.megatron.missing import needs_megatron
from tests.sglang.test_trace import pytestmark as needs_sglang

ROOT = EXAMPLES.parent

LIVE = (
    pytest.param("fsdp_to_sglang", marks=needs_sglang),
    pytest.param("megatron_to_sglang", marks=[*needs_sglang, *needs_megatron]),
)


@pytest.mark.parametrize("name", LIVE)
def test_engine_holds_every_byte_of_every_version(name: str) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name / "run.py")],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = re.findall(r"^   version (\d): engine rank (\d): .* equal$", done.stdout, re.MULTILINE)
    assert checks == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]
    assert untimed(done.stdout) in untimed((EXAMPLES / name / "README.md").read_text())


def untimed(text: str) -> str:
    return re.sub(r"in [\d.]+ s$", "in a moment", text, flags=re.MULTILINE)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).to(torch.bfloat16)


def test_equal_models_are_equal() -> None:
    assert verdict(model(), model()) == (True, "7 tensors, 88 bytes: equal")


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "1.num_batches_tracked"])
def test_one_bit_is_enough_to_fail(name: str) -> None:
    held = model()
    raw(held.state_dict()[name])[-1] ^= 1
    assert verdict(held, model()) == (False, f"different: {name}")


def test_values_that_compare_equal_may_differ_in_bytes() -> None:
    held, wanted = model(), model()
    held[1].running_mean = torch.zeros(5, dtype=torch.bfloat16)
    wanted[1].running_mean = -torch.zeros(5, dtype=torch.bfloat16)
    assert verdict(held, wanted) == (False, "different: 1.running_mean")


def test_missing_tensors_are_told() -> None:
    held = model()
    held.register_buffer("more", torch.zeros(1))
    assert verdict(held, model()) == (False, "different: more")

"""vLLM's weight-transfer API with tranship behind it."""

import json
import pkgutil
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.conftest import run_script
from tests.vllm.marks import NEEDS_VLLM
from tranship.runtime.frameworks.vllm import plugin

pytestmark = NEEDS_VLLM


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of updates of a plain model, of latent attention, and of packed weights."""
    folder = tmp_path_factory.mktemp("updates")
    run_script("weight_update.py", folder)
    found = folder.glob("*/report.json")
    return {path.parent.name.partition("-")[0]: json.loads(path.read_text()) for path in found}


def test_every_version_is_received_in_place_as_vllm_loads_it(reports: dict[str, Any]) -> None:
    for name in ("qwen3", "deepseek_v3"):
        assert reports[name]["equal"] == [True, True], name
        assert reports[name]["in place"] == [True, True], name


def test_a_mixture_of_versions_is_made_useless(reports: dict[str, Any]) -> None:
    for name in ("qwen3", "deepseek_v3"):
        assert "TS839" in reports[name]["spoiled"]
        assert len(reports[name]["then"]) > 3
        assert all(reports[name]["then"])


def test_init_info_that_makes_no_sense_is_refused(reports: dict[str, Any]) -> None:
    plain = reports["qwen3"]
    assert "TS881: transport 'pigeon' is none of gloo, nccl" in plain["no such transport"]
    assert "unexpected keyword argument 'speed'" in plain["no such argument"]


def test_what_is_wrong_here_is_told_before_others_wait(reports: dict[str, Any]) -> None:
    plain = reports["qwen3"]
    assert "TS811" in plain["other manifest"]
    assert "receiver rank 5: TS812" in plain["other rank"]
    assert plain["nobody serves"].startswith("meeting 'first' at 127.0.0.1:1 failed: ")


def test_layers_that_pack_their_weights_are_refused(reports: dict[str, Any]) -> None:
    report = reports["qwen3_moe"]
    found = re.findall(r"TS880: model\.layers\.([02])\.(.*) may hold .*: (.*)", report["packing"])
    attention = ("self_attn.qkv_proj", "Fp8LinearMethod"), ("self_attn.o_proj", "Fp8LinearMethod")
    experts = {"0": "UnquantizedFusedMoEMethod", "2": "Fp8MoEMethod"}
    assert set(found) == {
        (layer, *one)
        for layer, method in experts.items()
        for one in (*attention, ("mlp.experts.routed_experts", method))
    }
    assert "TS880" not in report["keeping"]
    assert "TS100" in report["keeping"]
    assert re.findall(r"TS880: (\S*)", report["packed"]) == ["lm_head"]


def test_what_is_made_of_weights_beside_them_is_refused(reports: dict[str, Any]) -> None:
    report = reports["qwen3_moe"]
    assert re.findall(r"TS880: (\S*) may", report["sinks"]) == ["model.layers.1.self_attn.attn"]
    assert re.findall(r"TS880: (.*) may", report["model"]) == ["the model"]


def test_experts_that_move_are_refused(reports: dict[str, Any]) -> None:
    report = reports["qwen3_moe"]
    assert re.findall(r"TS880: (.*) while", report["moving experts"]) == [
        "experts move between ranks"
    ]


def test_vllm_finds_the_backend_by_an_entry_point() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    (name,) = project["entry-points"]["vllm.general_plugins"].values()
    assert pkgutil.resolve_name(name) is plugin.register

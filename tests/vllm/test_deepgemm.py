"""Models of vLLM that were prepared for DeepGEMM receive what vLLM would have made of them."""

import json
from typing import Any

import pytest

from tests.vllm.conftest import run_script
from tests.vllm.marks import NEEDS_VLLM

pytestmark = NEEDS_VLLM

DTYPES = {
    f"{model}-{form}": dtype
    for model in ("qwen3_moe", "deepseek_v3")
    for form, dtype in (("power_of_two", "torch.float32"), ("packed", "torch.int32"))
}
"""What engines hold scales in, by model and form."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of updates, by model and form."""
    folder = tmp_path_factory.mktemp("deepgemm")
    run_script("deepgemm.py", folder)
    return {title: json.loads((folder / title / "report.json").read_text()) for title in DTYPES}


@pytest.mark.parametrize("title", DTYPES)
def test_every_version_is_what_vllm_makes_of_a_checkpoint(
    reports: dict[str, Any], title: str
) -> None:
    assert reports[title]["wrong"] == []
    assert reports[title]["in place"] == [True, True]
    assert reports[title]["scales"] == [DTYPES[title]]


@pytest.mark.parametrize("title", DTYPES)
def test_a_manifest_of_other_scales_is_refused(reports: dict[str, Any], title: str) -> None:
    lines = reports[title]["any"].splitlines()
    layer = "model.layers.2.mlp.experts.routed_experts.w2_weight"
    what = "is read by DeepGEMM with scales that are powers of two"
    assert f"receiver rank 0: TS880: {layer} {what}" in lines
    assert all(line.endswith(what) for line in lines)
    assert "TS880" not in reports[title]["as they are"]

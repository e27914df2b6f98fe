"""What SGLang 0.5.23 makes anew of what it has loaded is declared so, and no plan writes it."""

from pathlib import Path

import pytest
from torch import nn

from tests.bugs.restate import findings
from tests.models.configs import write_config
from tests.sglang.test_command import trace
from tests.sglang.test_trace import missing
from tranship.models.produce import Request, produce
from tranship.runtime.frameworks.sglang.layers import find_unfit
from tranship.schema.codec import load
from tranship.schema.diagnostics import Location
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest

EXPERTS = {"mlp.experts.w13_weight", "mlp.experts.w2_weight"}
LINEAR = {"self_attn.qkv_proj.weight", "self_attn.o_proj.weight"}
SCALES = {"mlp.experts.w13_weight_scale", "mlp.experts.w2_weight_scale"}


@pytest.mark.sglang
@pytest.mark.skipif(missing, reason="SGLang is not installed")
@pytest.mark.parametrize(
    ("option", "changed", "made"),
    [
        ("quantization=fp8", EXPERTS | LINEAR, SCALES),
        ("moe_runner_backend=flashinfer_trtllm", EXPERTS, set[str]()),
    ],
)
def test_weights_that_do_not_stay_as_they_were_loaded_are_not_for_a_plan(
    option: str, changed: set[str], made: set[str], tmp_path: Path
) -> None:
    config, output = write_config(tmp_path, "qwen3_moe"), tmp_path / "engine.json"
    done = trace("-c", config, "--option", option, "-o", output)
    assert done.returncode == 0, done.stderr
    engine = load(output, Manifest).value
    held = {buffer.name: buffer for buffer in expand(engine).buffers}
    layers = [f"model.layers.{number}." for number in range(3)]
    opaque = {name for name, buffer in held.items() if buffer.layout != "row_major"}
    assert opaque == {layer + name for layer in layers for name in changed | made}
    for role in (held[layer + name].role for layer in layers for name in made):
        assert (role.kind, role.recipe) == ("derived", "process_weights_after_loading")
    found = findings(produce(Request("qwen3_moe", config, "checkpoint", {})), engine)
    assert {finding.code for finding in found} == {"TS403"}
    for name in changed:
        assert any(f".{name} holds " in finding.message for finding in found)


class UnquantizedFusedMoEMethod:
    """Stands in for SGLang's method of this name; it notes what it did to weights."""

    w13_swiglu_interleaved = False

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Do nothing."""


def test_experts_that_were_interleaved_in_place_are_told_by_what_sglang_notes() -> None:
    model, where = nn.ModuleDict({"experts": nn.Module()}), Location("receiver rank 0")
    experts, method = vars(model["experts"]), UnquantizedFusedMoEMethod()
    experts |= {"quant_method": method, "_mega_moe_weights_built": False}
    assert find_unfit(model, where) == ()
    method.w13_swiglu_interleaved = True
    (found,) = find_unfit(model, where)
    assert (found.code, found.message) == (
        "TS871",
        "rows of gates and up projections are interleaved: experts",
    )
    method.w13_swiglu_interleaved, experts["_mega_moe_weights_built"] = False, True
    (found,) = find_unfit(model, where)
    assert found.message == "experts are interleaved for the kernels of mega MoE: experts"

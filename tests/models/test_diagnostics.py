"""What a configuration makes impossible is said, all of it, with what to do."""

from pathlib import Path

import pytest

from tests.models.configs import FP8, write_config
from tranship.models.produce import Request, produce
from tranship.schema.diagnostics import Diagnostic, DiagnosticError

TOOLS = "deepep (or another)"


def found(
    folder: Path,
    name: str,
    layout: str,
    options: dict[str, str] | None = None,
    quantization: str | None = None,
    architecture: str | None = None,
    **changes: object,
) -> tuple[Diagnostic, ...]:
    config = write_config(folder, name, **changes)
    request = Request(architecture or name, config, layout, options or {}, quantization)
    with pytest.raises(DiagnosticError) as caught:
        produce(request)
    return caught.value.diagnostics


def only(diagnostics: tuple[Diagnostic, ...]) -> Diagnostic:
    (diagnostic,) = diagnostics
    return diagnostic


def test_names_of_data_files_are_suggested(tmp_path: Path):
    diagnostic = only(found(tmp_path, "qwen3", "sglan"))
    assert (diagnostic.code, diagnostic.suggestion) == ("TS750", "sglang")
    diagnostic = only(found(tmp_path, "qwen3", "fsdp", architecture="qwen_3"))
    assert (diagnostic.code, diagnostic.suggestion) == ("TS750", "qwen3")


def test_a_data_file_that_is_not_there(tmp_path: Path):
    assert only(found(tmp_path, "qwen3", str(tmp_path / "mine.toml"))).code == "TS100"


def test_a_config_of_another_model(tmp_path: Path):
    diagnostic = only(found(tmp_path, "llama", "fsdp", {"shard_size": "2"}, architecture="qwen3"))
    assert diagnostic.code == "TS752"
    assert diagnostic.at
    assert diagnostic.at.pointer == "/model_type"


@pytest.mark.parametrize("value", [{"a": 1}, [1, None]])
def test_a_field_that_is_no_number(tmp_path: Path, value: object):
    diagnostic = only(found(tmp_path, "qwen3", "fsdp", {"shard_size": "2"}, hidden_size=value))
    assert diagnostic.code == "TS751"
    assert "hidden_size" in diagnostic.message


def test_a_config_that_is_no_object(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text("[]")
    with pytest.raises(DiagnosticError, match="TS112"):
        produce(Request("qwen3", str(path), "fsdp", {"shard_size": "2"}))


def test_a_field_without_default_must_be_there(tmp_path: Path):
    own = tmp_path / "own.toml"
    own.write_text(
        'format = "tranship.architecture/1"\ntitle = "X"\nmodel_types = ["qwen3"]\ntensors = []\n'
        '[sizes]\nrows = { field = ["rank.a", "rank.b"] }\n'
    )
    diagnostic = only(found(tmp_path, "qwen3", "fsdp", {"shard_size": "2"}, architecture=str(own)))
    assert diagnostic.message == "the config has no rank.a or rank.b"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp": "2"}, "sglang has no option 'tp'"),
        ({"tp_size": "two"}, "option tp_size of sglang cannot be 'two'"),
        ({"tp_size": "0"}, "option tp_size of sglang cannot be '0'"),
        ({"enable_dp_attention": "yes"}, "option enable_dp_attention of sglang cannot be 'yes'"),
        ({"device": "tpu"}, "option device of sglang cannot be 'tpu'"),
    ],
)
def test_options_are_the_layouts(tmp_path: Path, options: dict[str, str], message: str):
    diagnostic = only(found(tmp_path, "qwen3", "sglang", options))
    assert (diagnostic.code, diagnostic.message) == ("TS753", message)


def test_options_that_are_needed_are_asked_for(tmp_path: Path):
    diagnostic = only(found(tmp_path, "qwen3", "fsdp"))
    assert (diagnostic.code, diagnostic.suggestion) == ("TS753", "--option shard_size=...")


def test_several_mistakes_are_told_at_once(tmp_path: Path):
    options = {"tp": "1", "tp_size": "x"}
    codes = [one.code for one in found(tmp_path, "llama", "sglang", options, architecture="qwen3")]
    assert codes == ["TS753", "TS753", "TS752"]


@pytest.mark.parametrize(
    ("name", "layout", "options", "message"),
    [
        ("qwen3", "sglang", {"dp_size": "2"}, "dp_size = 2 without enable_dp_attention"),
        ("qwen3_moe", "sglang", {"tp_size": "8"}, "tp_size = 8 is greater than the number of"),
        (
            "deepseek_v3",
            "sglang",
            {"tp_size": "4", "moe_dense_tp_size": "2"},
            "moe_dense_tp_size = 2 is neither 1 nor tp_size = 4",
        ),
        (
            "deepseek_v3",
            "sglang",
            {"tp_size": "4", "ep_size": "2", "moe_a2a_backend": "deepep"},
            "moe_a2a_backend = deepep makes ep_size 4",
        ),
        (
            "qwen3",
            "megatron",
            {"world_size": "6", "tensor_model_parallel_size": "4"},
            "6 ranks of a pipeline stage are not divisible by",
        ),
        (
            "qwen3",
            "megatron",
            {"world_size": "2", "pipeline_model_parallel_size": "2", "pipeline_layers": "1,1"},
            "the pipeline's stages have 2 layers in all, and the model has 3",
        ),
        (
            "qwen3",
            "megatron",
            {"world_size": "2", "pipeline_model_parallel_size": "2", "pipeline_layers": "3"},
            "pipeline_layers lists 1 numbers for 2 stages",
        ),
        ("qwen3", "vllm", {"enable_expert_parallel": "true"}, "enable_expert_parallel is set"),
    ],
)
def test_constraints_of_frameworks(
    tmp_path: Path, name: str, layout: str, options: dict[str, str], message: str
):
    diagnostics = found(tmp_path, name, layout, options)
    assert message in next(one for one in diagnostics if one.code == "TS754").message


def test_sglang_drops_biases_of_mlps(tmp_path: Path):
    assert only(found(tmp_path, "llama", "sglang", mlp_bias=True)).code == "TS754"


def test_sglang_leaves_some_tied_heads_unwritten(tmp_path: Path):
    diagnostic = only(found(tmp_path, "qwen3_moe", "sglang", tie_word_embeddings=True))
    assert diagnostic.code == "TS754"


def test_heads_and_experts_are_divided_evenly(tmp_path: Path):
    messages = {
        one.message
        for one in found(tmp_path, "qwen3_moe", "sglang", {"tp_size": "3", "ep_size": "3"})
        if one.code == "TS755"
    }
    assert messages == {
        "heads = 8 is not divisible by attn_tp_size = 3",
        "columns = 1024 is not divisible by attn_tp_size = 3, of attention_output",
        "experts = 4 is not divisible by moe_ep_size = 3",
    }


def test_key_value_heads_are_divided_or_copied_evenly(tmp_path: Path):
    options = {"tp_size": "8"}
    diagnostic = only(found(tmp_path, "qwen3", "sglang", options, num_key_value_heads=3))
    assert diagnostic.message == "attn_tp_size = 8 is not divisible by kv_parts = 3"


def test_an_fp8_shard_of_704_rows(tmp_path: Path):
    diagnostics = found(
        tmp_path, "qwen3", "sglang", {"tp_size": "2"}, "fp8-block128", intermediate_size=1408
    )
    assert [one.code for one in diagnostics] == ["TS756", "TS756"]
    assert diagnostics[0].message == (
        "an FP8 shard of 704 rows of 'model.layers.{layer}.mlp.gate_proj.weight' is not made of "
        "whole blocks of 128"
    )


def test_what_keeps_a_module_whole_is_suggested(tmp_path: Path):
    options = {"tp_size": "8", "ep_size": "8"}
    sizes = {"intermediate_size": 1152, "num_attention_heads": 16}
    diagnostics = found(tmp_path, "deepseek_v3", "sglang", options, "fp8-block128", None, **sizes)
    hints = [one.help or "" for one in diagnostics]
    assert [one.code for one in diagnostics] == ["TS756"] * 4
    assert sum("moe_dense_tp_size = 1" in hint for hint in hints) == 2
    assert sum(TOOLS in hint for hint in hints) == 2
    whole = {"moe_dense_tp_size": "1", "moe_a2a_backend": "deepep"}
    path = write_config(tmp_path, "deepseek_v3", **sizes)
    made = produce(Request("deepseek_v3", path, "sglang", options | whole, "fp8-block128"))
    assert made.world_size == 8


def test_fused_parts_of_half_a_block_each(tmp_path: Path):
    diagnostic = only(found(tmp_path, "qwen3", "sglang", {}, "fp8-block128", intermediate_size=960))
    assert diagnostic.code == "TS756"


@pytest.mark.parametrize(
    ("layout", "quantization", "message"),
    [
        ("sglang", "fp8", "there is no quantization 'fp8'"),
        ("megatron", "fp8-block128", "layout megatron holds no weights in fp8-block128"),
    ],
)
def test_quantizations_that_cannot_be_declared(
    tmp_path: Path, layout: str, quantization: str, message: str
):
    options = {"world_size": "1"} if layout == "megatron" else {}
    diagnostic = only(found(tmp_path, "qwen3", layout, options, quantization))
    assert (diagnostic.code, diagnostic.message) == ("TS757", message)


def test_a_fused_module_that_is_quantized_in_part(tmp_path: Path):
    listed = FP8["quantization_config"] | {"modules_to_not_convert": ["k_proj"]}
    diagnostic = only(found(tmp_path, "qwen3", "sglang", quantization_config=listed))
    assert diagnostic.code == "TS758"
    assert "q_proj" in diagnostic.message


LAYOUT = """
format = "tranship.layout/1"
title = "X"
side = "sender"
framework = "x"
world_size = "ranks"
[options.ranks]
type = "int"
default = 2
doc = "ranks"
[[axes]]
name = "x"
size = "ranks"
stride = 1
"""


@pytest.mark.parametrize(
    ("rules", "pointer"),
    [
        ('[values]\na = "b"\nb = "a"\n[[buffers]]\nname = "<a>"\neach = "*"\n', "/buffers/0"),
        ('[[buffers]]\nname = "<name>"\neach = "*"\nrows = ["y", 1]\n', "/buffers/0"),
        ('[[buffers]]\nname = "<nome>"\neach = "*"\n', "/buffers/0"),
        ('[[buffers]]\nname = "<name>"\neach = "*"\ndtype = "\'f33\'"\n', "/buffers/0"),
        (
            '[tables.t]\nindex = "i"\ncount = 2\nvalue = "q"\n'
            '[[buffers]]\nname = "<name>"\neach = "*"\n',
            "/tables/t",
        ),
        (
            '[[constraints]]\nrequire = "x > 1"\nmessage = "m"\n'
            '[[buffers]]\nname = "<name>"\neach = "*"\n',
            "/constraints/0",
        ),
    ],
)
def test_expressions_of_a_users_file(tmp_path: Path, rules: str, pointer: str):
    own = tmp_path / "own.toml"
    own.write_text(LAYOUT + rules)
    diagnostics = found(tmp_path, "qwen3", str(own))
    assert {one.code for one in diagnostics} == {"TS759"}
    assert diagnostics[0].at
    assert (diagnostics[0].at.file, diagnostics[0].at.pointer) == (str(own), pointer)


def test_a_role_that_no_rule_is_about(tmp_path: Path):
    own = tmp_path / "own.toml"
    own.write_text(LAYOUT + '[[buffers]]\nname = "<name>"\neach = ["query", "key"]\n')
    diagnostics = found(tmp_path, "qwen3", str(own))
    assert {one.code for one in diagnostics} == {"TS760"}
    assert len(diagnostics) == len(
        {"embedding", "attention_norm", "value", "attention_output", "query_norm", "key_norm"}
        | {"mlp_norm", "gate", "up", "down", "final_norm", "head"}
    )


def test_a_users_own_layout_is_taken(tmp_path: Path):
    own = tmp_path / "own.toml"
    own.write_text(LAYOUT + '[[buffers]]\nname = "mine.<name>"\neach = "*"\n')
    config = write_config(tmp_path, "llama")
    manifest = produce(Request("llama", config, str(own), {"ranks": "3"}))
    assert (manifest.world_size, manifest.buffers[0].name) == (3, "mine.model.embed_tokens.weight")

"""The list of unquantized modules: checked against the buffers, and between the two sides."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.models.configs import FP8
from tests.models.produced import made
from tranship.compiler.agree import agree
from tranship.compiler.inputs import Inputs
from tranship.schema.check import check_manifest
from tranship.schema.codec import dump
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, ModuleFamily, Quantization, Side
from tranship.schema.merge import merge


def listing(manifest: Manifest, families: Sequence[ModuleFamily]) -> Manifest:
    declared = Quantization(method="fp8-block128", unquantized=tuple(families))
    return manifest.model_copy(update={"quantization": declared})


def families(manifest: Manifest) -> tuple[ModuleFamily, ...]:
    assert manifest.quantization
    return manifest.quantization.unquantized


@pytest.fixture
def engine(tmp_path: Path) -> Manifest:
    return made(tmp_path, "qwen3_moe", "sglang", {"tp_size": 2}, fp8=True)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ModuleFamily(name="model.layers.1.self_attn.q_proj"),
            "module 'model.layers.1.self_attn.q_proj' is listed as unquantized, and is scaled",
        ),
        (
            ModuleFamily(name="model.layers.{n}.self_attn.q_proj", indices={"n": "0..2"}),
            "module 'model.layers.0.self_attn.q_proj' and 2 more like it is listed as "
            "unquantized, and is scaled",
        ),
        (
            ModuleFamily(name="model.layers.{n}.mlp.gate", indices={"n": "2,7"}),
            "module 'model.layers.7.mlp.gate' is listed as unquantized, and has no tensor of two "
            "dims or more",
        ),
        (
            ModuleFamily(name="model.norm"),
            "module 'model.norm' is listed as unquantized, and has no tensor of two dims or more",
        ),
    ],
)
def test_a_list_that_names_too_much(engine: Manifest, extra: ModuleFamily, message: str):
    (found,) = check_manifest(listing(engine, [*families(engine), extra]))
    assert (found.code, found.message) == ("TS197", message)


def test_a_list_that_leaves_a_module_out(engine: Manifest):
    gate = ModuleFamily(name="model.layers.{n}.mlp.gate", indices={"n": "0,2"})
    kept = [family for family in families(engine) if "gate" not in family.name]
    (found,) = check_manifest(listing(engine, [*kept, gate]))
    assert found.message == (
        "module 'model.layers.1.mlp.gate' is plain, and the quantization does not list it as "
        "unquantized"
    )


def test_a_list_may_name_modules_one_by_one(engine: Manifest):
    kept = [family for family in families(engine) if "gate" not in family.name]
    single = [ModuleFamily(name=f"model.layers.{layer}.mlp.gate") for layer in range(3)]
    assert check_manifest(listing(engine, [*kept, *single])) == ()


def test_sides_that_leave_the_same_alone_agree(tmp_path: Path, engine: Manifest):
    checkpoint = made(tmp_path, "qwen3_moe", "checkpoint", fp8=True)
    trainer = made(tmp_path, "qwen3_moe", "checkpoint")
    assert agree(Inputs(checkpoint, engine)) == []
    assert agree(Inputs(trainer, engine)) == []
    kept = [family for family in families(engine) if "gate" not in family.name]
    single = [ModuleFamily(name=f"model.layers.{layer}.mlp.gate") for layer in range(3)]
    assert agree(Inputs(checkpoint, listing(engine, [*kept, *single]))) == []


@pytest.mark.parametrize("side", Side)
def test_sides_that_differ_are_told_where(tmp_path: Path, side: Side):
    config = FP8["quantization_config"] | {
        "modules_to_not_convert": ["model.layers.1.mlp", "o_proj"]
    }
    some = made(tmp_path, "qwen3_moe", "checkpoint", quantization_config=config)
    every = made(tmp_path, "qwen3_moe", "checkpoint", fp8=True)
    sender, receiver = (some, every) if side is Side.SENDER else (every, some)
    found = agree(Inputs(sender, receiver))
    other = "receiver" if side is Side.SENDER else "sender"
    experts = "module 'model.layers.1.mlp.experts.0.{}_proj' and 3 more like it"
    assert {one.message for one in found} == {
        f"module 'model.layers.0.self_attn.o_proj' and 2 more like it is quantized by the {other} "
        "alone",
        *(
            f"{experts.format(part)} is quantized by the {other} alone"
            for part in ("gate", "up", "down")
        ),
    }
    assert {one.code for one in found} == {"TS206"}
    assert all(one.at and one.at.file == other for one in found)


def test_ranks_are_merged_with_what_each_leaves_alone(engine: Manifest):
    ranks = [(f"{rank}.json", fold(expand(engine, [rank]))) for rank in range(2)]
    whole = fold(expand(engine))
    assert dump(merge(ranks)) == dump(whole)


def test_ranks_of_different_quantizations_are_not_merged(engine: Manifest):
    first, second = (fold(expand(engine, [rank])) for rank in range(2))
    plain = second.model_copy(update={"quantization": None})
    with pytest.raises(DiagnosticError, match="TS148: the quantizations differ: none here"):
        merge([("0.json", first), ("1.json", plain)])

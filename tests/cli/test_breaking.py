"""Which changes of a manifest break older plans, and which do not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.example import MLP, MTP, engine, shard
from tests.cli.golden import assert_golden
from tests.cli.outcome import run
from tests.cli.test_diff import one_more_replica, page, up_before_gate, with_buffers
from tranship.compiler.diff import Change, Weight
from tranship.compiler.diffs.breaking import breaking_code
from tranship.schema.codec import dump
from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    BufferFamily,
    ConstantBuffer,
    Framework,
    Manifest,
    Role,
    Side,
    TensorFamily,
)

ENGINE = "engine.manifest.json"
EMBEDDING = "model.embed_tokens.weight"


def embedding_as(**update: object) -> Manifest:
    return with_buffers(
        lambda buffer: buffer.model_copy(update=update) if buffer.name == EMBEDDING else buffer
    )


def without(name: str) -> Manifest:
    return with_buffers(lambda buffer: None if buffer.name == name else buffer)


def with_more(buffer: BufferFamily, tensor: TensorFamily | None = None) -> Manifest:
    manifest = engine()
    tensors = (*manifest.tensors, *((tensor,) if tensor else ()))
    return manifest.model_copy(update={"buffers": (*manifest.buffers, buffer), "tensors": tensors})


def constant(name: str) -> BufferFamily:
    role: Role = ConstantBuffer(kind="constant", reason="fixed")
    return BufferFamily(name=name, dtype=DType.F32, shape=(8,), role=role)


def more_tensors() -> Manifest:
    whole = BufferFamily(
        name=MTP.name,
        dtype=DType.BF16,
        shape=(256,),
        pieces=(shard(MTP).pieces[0].model_copy(update={"start": (0,), "extent": (256,)}),),
    )
    return with_more(whole, MTP)


def finer_scales() -> Manifest:
    def powers(buffer: BufferFamily) -> BufferFamily:
        if not buffer.name.endswith("gate_up_proj.weight"):
            return buffer
        encoding = buffer.encoding.model_copy(update={"scale_values": "power_of_two"})
        return buffer.model_copy(update={"encoding": encoding})

    return with_buffers(powers)


BREAKING: dict[str, tuple[Callable[[], Manifest], set[str]]] = {
    "mesh": (one_more_replica, {"TS700"}),
    "name": (lambda: embedding_as(name="model.embedding.weight"), {"TS701"}),
    "dtype": (lambda: embedding_as(dtype=DType.F32), {"TS703"}),
    "layout": (lambda: embedding_as(layout="marlin"), {"TS703"}),
    "order": (up_before_gate, {"TS704"}),
    "scales": (finer_scales, {"TS705"}),
    "tensor": (more_tensors, {"TS702", "TS707"}),
}


@pytest.mark.parametrize("name", BREAKING)
def test_breaking_changes_are_findings(compiled: Path, name: str) -> None:
    make, codes = BREAKING[name]
    (compiled / "new.json").write_bytes(dump(make()))
    outcome = run("breaking", "new.json", "--against", ENGINE)
    assert outcome.status == 1, outcome
    assert {code for code in codes if f"error[{code}]" in outcome.err} == codes


COMPATIBLE: dict[str, Callable[[], Manifest]] = {
    "nothing": engine,
    "version": lambda: engine().model_copy(
        update={"framework": Framework(name="sglang", version="0.6")}
    ),
    "constant": lambda: with_more(constant("rotary.cache")),
    "without constant": lambda: without("rotary.inv_freq"),
}


@pytest.mark.parametrize("name", COMPATIBLE)
def test_compatible_changes_are_none(compiled: Path, name: str) -> None:
    (compiled / "new.json").write_bytes(dump(COMPATIBLE[name]()))
    outcome = run("breaking", "new.json", "--against", ENGINE)
    assert (outcome.status, outcome.err) == (0, "")


def change(kind: str, old: str | None = "a", new: str | None = "b") -> Change:
    return Change(kind, Weight.CHANGE, "x", old, new)


@pytest.mark.parametrize(
    ("found", "side", "code"),
    [
        (change("buffer.role"), Side.RECEIVER, "TS706"),
        (change("buffer", None), Side.SENDER, None),
        (change("buffer", None), Side.RECEIVER, "TS702"),
        (change("buffer", new=None), Side.SENDER, "TS701"),
        (change("manifest.quantization"), Side.RECEIVER, "TS708"),
        (change("buffer.later"), Side.RECEIVER, "TS708"),
    ],
)
def test_codes_of_changes(found: Change, side: Side, code: str | None) -> None:
    assert breaking_code(found, side) == code


def test_page_is_as_committed(compiled: Path) -> None:
    new = up_before_gate().model_copy(update={"framework": Framework(name="sglang", version="1")})
    (compiled / "new.json").write_bytes(dump(new))
    assert_golden("cli/breaking.txt", page(run("breaking", "new.json", "--against", ENGINE)))


def test_what_is_gone_is_labelled_where_it_was(compiled: Path) -> None:
    (compiled / "new.json").write_bytes(dump(without(f"{MLP}.experts.w2_weight")))
    found = with_buffers(lambda buffer: buffer).buffers
    place = [buffer.name for buffer in found].index(f"{MLP}.experts.w2_weight")
    manifest = json.loads((compiled / "new.json").read_text())
    tensors = [one for one in manifest["tensors"] if "down_proj" not in one["name"]]
    (compiled / "new.json").write_text(json.dumps({**manifest, "tensors": tensors}))
    outcome = run("breaking", "new.json", "--against", ENGINE, "--format", "json")
    gone = [one for one in json.loads(outcome.out)["diagnostics"] if one["code"] == "TS701"]
    assert [one["labels"][0]["pointer"] for one in gone] == [f"/buffers/{place}"]
    assert [one["labels"][0]["file"] for one in gone] == [ENGINE]


def test_other_documents_than_manifests_are_a_usage_error(compiled: Path) -> None:
    assert run("breaking", "policy.json", "--against", ENGINE).status == 2
    assert run("breaking", ENGINE, "--against", "policy.json").status == 2

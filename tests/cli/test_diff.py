"""What a difference means, as people, programs and services read it."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.example import MLP, engine, trainer
from tests.cli.golden import GOLDEN, assert_golden
from tests.cli.outcome import Outcome, contents, run
from tranship.compiler.diff import Weight, diff_manifests
from tranship.schema.codec import dump
from tranship.schema.manifest import (
    Axis,
    BufferFamily,
    ConstantBuffer,
    Framework,
    Manifest,
    ModuleFamily,
    Quantization,
)

ROOT = Path(__file__).parents[2]
TRANSFER, PLAN, ENGINE = "small.transfer.toml", "small.plan.json", "engine.manifest.json"


def page(outcome: Outcome) -> str:
    return f"{outcome.out}--- stderr\n{outcome.err}--- status {int(outcome.status)}\n"


def with_buffers(change: Callable[[BufferFamily], BufferFamily | None]) -> Manifest:
    """The engine with every buffer changed; what becomes None is left out."""
    manifest = engine()
    buffers = (change(buffer) for buffer in manifest.buffers)
    return manifest.model_copy(update={"buffers": tuple(one for one in buffers if one)})


def one_more_replica() -> Manifest:
    axes = (*engine().axes, Axis(name="replica", size=2, stride=2))
    return engine().model_copy(update={"world_size": 4, "axes": axes})


def up_before_gate() -> Manifest:
    def swapped(buffer: BufferFamily) -> BufferFamily:
        if "gate_up_proj" not in buffer.name:
            return buffer
        gate, up = buffer.pieces
        pieces = (
            gate.model_copy(update={"offset": up.offset}),
            up.model_copy(update={"offset": gate.offset}),
        )
        return buffer.model_copy(update={"pieces": pieces})

    return with_buffers(swapped)


def constant_norm() -> Manifest:
    def frozen(buffer: BufferFamily) -> BufferFamily | None:
        if buffer.name.endswith("norm_sum"):
            return None
        if not buffer.name.endswith("layernorm.weight"):
            return buffer
        role = ConstantBuffer(kind="constant", reason="frozen in training")
        return buffer.model_copy(update={"role": role, "pieces": ()})

    return with_buffers(frozen).model_copy(
        update={"tensors": tuple(t for t in engine().tensors if "layernorm" not in t.name)}
    )


ENGINES = {
    "replica": one_more_replica,
    "order": up_before_gate,
    "constant": constant_norm,
}


@pytest.mark.parametrize("name", ENGINES)
def test_page_of_a_changed_engine_is_as_committed(compiled: Path, name: str) -> None:
    (compiled / "new.json").write_bytes(dump(ENGINES[name]()))
    assert_golden(f"cli/diff-{name}.txt", page(run("diff", ENGINE, "new.json")))


@pytest.fixture
def changed(compiled: Path) -> Path:
    """The example, and in `new` the same with other options, another policy, and a plan of it."""
    (compiled / "new").mkdir()
    for name, data in contents(compiled).items():
        (compiled / "new" / name).write_bytes(data)
    transfer = compiled / "new" / TRANSFER
    transfer.write_text(transfer.read_text().replace("4194304", "524288"))
    policy = compiled / "new" / "policy.json"
    allowance = json.loads(policy.read_text())["allow"][0]
    more = {**allowance, "tensors": "*.weight", "reason": "to try it out"}
    document = json.loads(policy.read_text())
    policy.write_text(json.dumps({**document, "allow": [allowance, more]}))
    assert run("compile", f"new/{TRANSFER}").status == 0
    return compiled


@pytest.mark.parametrize("form", ["human", "markdown", "github", "json"])
@pytest.mark.parametrize("file", [PLAN, TRANSFER])
def test_formats_of_a_diff_are_as_committed(changed: Path, file: str, form: str) -> None:
    outcome = run("diff", file, f"new/{file}", "--format", form)
    kind = file.split(".")[1]
    assert_golden(f"cli/diff-{kind}-{form}.txt", page(outcome))


def on_three_ranks() -> Manifest:
    """The trainer with chunks of 86 rows: they cut the blocks of 128."""
    whole = trainer()

    def cut(buffer: BufferFamily, rows: int) -> BufferFamily:
        size = -(-rows // 3)
        extent = f"min({size}, {rows} - fsdp * {size})"
        piece = buffer.pieces[0]
        update = {
            "start": (f"fsdp * {size}", *piece.start[1:]),
            "extent": (extent, *piece.extent[1:]),
        }
        shape = (extent, *buffer.shape[1:])
        return buffer.model_copy(
            update={"shape": shape, "pieces": (piece.model_copy(update=update),)}
        )

    pairs = zip(whole.buffers, whole.tensors, strict=True)
    return whole.model_copy(
        update={
            "world_size": 3,
            "axes": (Axis(name="fsdp", size=3, stride=1),),
            "buffers": tuple(cut(buffer, tensor.shape[0]) for buffer, tensor in pairs),
        }
    )


def test_page_of_a_plan_whose_blocks_are_cut_is_as_committed(compiled: Path) -> None:
    (compiled / "trainer.manifest.json").write_bytes(dump(on_three_ranks()))
    assert run("compile", TRANSFER, "-o", "new.json").status == 0
    assert_golden("cli/diff-plan-cut.txt", page(run("diff", PLAN, "new.json")))


def test_granted_lines_of_a_policy_come_first(changed: Path) -> None:
    outcome = run("diff", TRANSFER, f"new/{TRANSFER}")
    lines = [line for line in outcome.out.splitlines() if line]
    assert lines[1:3] == ["policy", "to approve"]
    assert "to try it out" in lines[3]


def test_same_meaning_is_status_0_and_other_meaning_status_3(changed: Path) -> None:
    compact = json.dumps(json.loads((changed / ENGINE).read_text()))
    (changed / "compact.json").write_text(compact)
    assert run("diff", ENGINE, "compact.json").status == 0
    assert run("diff", PLAN, PLAN).status == 0
    assert run("diff", PLAN, f"new/{PLAN}").status == 3
    assert run("diff", PLAN, "missing.json").status == 2
    assert run("diff", PLAN, ENGINE).status == 2
    assert "error[TS914]" in run("diff", PLAN, ENGINE).err


def test_transfer_file_that_names_another_kind_is_refused(changed: Path) -> None:
    transfer = changed / "new" / TRANSFER
    transfer.write_text(transfer.read_text().replace('"policy.json"', f'"{ENGINE}"'))
    outcome = run("diff", TRANSFER, f"new/{TRANSFER}")
    assert (outcome.status, "error[TS914]" in outcome.err) == (2, True)


def test_compile_check_says_what_would_change(changed: Path) -> None:
    (changed / "new" / PLAN).write_bytes((changed / PLAN).read_bytes())
    outcome = run("compile", f"new/{TRANSFER}", "--check")
    assert outcome.status == 3
    assert "staging budget  4,194,304 -> 524,288" in outcome.out
    document = json.loads(run("compile", f"new/{TRANSFER}", "--check", "--format", "json").out)
    kinds = {one["kind"] for one in document["changes"]["sections"][0]["changes"]}
    assert {"staging.budget", "round"} <= kinds


def test_compile_check_of_what_is_no_plan_is_only_out_of_date(changed: Path) -> None:
    (changed / "new" / PLAN).write_text("{}")
    outcome = run("compile", f"new/{TRANSFER}", "--check")
    assert (outcome.status, outcome.err) == (3, f"run: tranship compile new/{TRANSFER}\n")


DOCUMENTED = {
    "diff-order": 2,
    "diff-transfer-human": 2,
    "diff-plan-cut": 2,
    "breaking": 0,
    "check-github": 0,
}
"""Committed pages that the documentation shows, from which of their lines on."""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documentation_shows_what_the_commands_print(name: str) -> None:
    text = (GOLDEN / f"cli/{name}.txt").read_text().partition("--- stderr")[0]
    shown = "\n".join(text.splitlines()[DOCUMENTED[name] :])
    assert f"\n{shown.rstrip()}\n" in (ROOT / "docs" / "ci.md").read_text()


def git(*arguments: str) -> None:
    names = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME",)}
    mails = {f"GIT_{who}_EMAIL": "x@example.org" for who in ("AUTHOR", "COMMITTER")}
    environment = {**os.environ, **names, **mails, "GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", *arguments], check=True, capture_output=True, env=environment)


@pytest.fixture
def repository(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example committed in a folder `engines` of a repository, which is the current one."""
    (compiled / "engines").mkdir()
    for name, data in contents(compiled).items():
        (compiled / "engines" / name).write_bytes(data)
    git("init", "--quiet")
    git("add", "engines")
    git("commit", "--quiet", "-m", "first")
    (compiled / "engines" / ENGINE).write_bytes(dump(up_before_gate()))
    return compiled


def subjects(*arguments: str) -> list[str]:
    document: dict[str, Any] = json.loads(run(*arguments, "--format", "json").out)
    return [one["subject"] for section in document["sections"] for one in section["changes"]]


def test_revision_is_read_as_git_reads_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {f"{MLP}.gate_up_proj.weight", f"{MLP}.gate_up_proj.weight_scale_inv"}
    here = f"engines/{ENGINE}"
    assert set(subjects("diff", f"HEAD:{here}", here)) == weights
    assert subjects("diff", f"HEAD:{here}", f":{here}") == []
    assert run("breaking", here, "--against", f"HEAD:{here}").status == 1
    assert set(subjects("diff", f"HEAD:engines/{TRANSFER}", f"engines/{TRANSFER}")) == weights
    monkeypatch.chdir(repository / "engines")
    assert set(subjects("diff", f"HEAD:./{ENGINE}", ENGINE)) == weights
    assert set(subjects("diff", f"HEAD:./{TRANSFER}", TRANSFER)) == weights
    assert set(subjects("diff", f"HEAD:../engines/{ENGINE}", ENGINE)) == weights


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("nothing:engines/policy.json", "TS912"),
        ("--help:engines/policy.json", "TS912"),
        ("HEAD:policy.json", "TS913"),
        ("HEAD:engines", "TS913"),
        ("HEAD:", "TS913"),
        ("HEAD:engines/no\0name.json", "TS100"),
    ],
)
def test_what_git_has_not_is_refused(repository: Path, place: str, code: str) -> None:
    outcome = run("diff", "--", place, "policy.json")
    assert (outcome.status, f"error[{code}]" in outcome.err) == (2, True)
    assert "Traceback" not in outcome.err


def test_path_that_lacks_its_dot_is_suggested(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository / "engines")
    assert f"HEAD:./{ENGINE}" in run("diff", f"HEAD:{ENGINE}", ENGINE).err


def test_folder_without_git_is_refused(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(compiled.parent))
    assert "error[TS911]" in run("diff", "HEAD:policy.json", "policy.json").err
    monkeypatch.setenv("PATH", "")
    outcome = run("diff", "HEAD:policy.json", "policy.json")
    assert (outcome.status, "error[TS910]" in outcome.err) == (2, True)


def test_file_that_is_not_text_in_a_revision_is_refused(repository: Path) -> None:
    (repository / "engines" / "policy.json").write_bytes(b"\xff")
    git("add", "engines")
    git("commit", "--quiet", "-m", "second")
    assert "error[TS101]" in run("diff", "HEAD:engines/policy.json", "policy.json").err


def quantized(*modules: ModuleFamily, method: str = "fp8-block128") -> Manifest:
    return engine().model_copy(
        update={"quantization": Quantization(method=method, unquantized=modules)}
    )


def test_modules_left_unquantized_are_compared_by_name() -> None:
    norms = ModuleFamily(name="model.layers.{layer}.gate", indices={"layer": "0..3"})
    parts = [norms.model_copy(update={"indices": {"layer": part}}) for part in ("3", "0..2")]
    assert diff_manifests(quantized(norms), quantized(*parts)) == ()
    (less,) = diff_manifests(quantized(norms), quantized(parts[0]))
    assert (less.kind, less.count, less.members) == ("quantization.module", 3, "layer 0..2")
    (more,) = diff_manifests(quantized(parts[1]), quantized(norms))
    assert (more.old, more.new, more.members) == (None, "left unquantized", "layer 3")
    (other,) = diff_manifests(quantized(norms), quantized(norms, method="int8"))
    assert (other.kind, other.old, other.new) == ("quantization", "fp8-block128", "int8")


def test_options_of_a_framework_are_compared_one_by_one() -> None:
    manifests = [
        engine().model_copy(
            update={"framework": Framework(name="sglang", options={"tp_size": size, "dp_size": 1})}
        )
        for size in (4, 8)
    ]
    (change,) = diff_manifests(*manifests)
    assert (change.kind, change.old, change.new) == ("framework.option tp_size", "4", "8")
    assert change.weight is Weight.NOTE

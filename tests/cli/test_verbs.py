"""What each verb does, and what it exits with."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.example import engine, trainer
from tests.cli.outcome import contents, run
from tranship.cli.load import load_transfer
from tranship.compiler.inputs import Inputs
from tranship.compiler.pipeline import compile_inputs
from tranship.schema.codec import dump, load
from tranship.schema.diagnostics import known_codes, title
from tranship.schema.moves import edge_moves
from tranship.schema.plan import TransferPlan
from tranship.schema.publish import NAMES, published_bytes
from tranship.schema.wire import payload

PLAN = "small.plan.json"
TRANSFER = "small.transfer.toml"


def document(*arguments: str) -> dict[str, Any]:
    outcome = run(*arguments, "--format", "json")
    assert outcome.err == ""
    return json.loads(outcome.out)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_compile_writes_the_plan_beside_the_transfer_file(folder: Path) -> None:
    outcome = run("compile", TRANSFER)
    assert (outcome.status, outcome.err) == (0, "")
    expected = dump(compile_inputs(load_transfer(TRANSFER).inputs))
    assert (folder / PLAN).read_bytes() == expected


def test_compile_says_whether_the_plan_changed(folder: Path) -> None:
    assert document("compile", TRANSFER)["state"] == "new"
    assert document("compile", TRANSFER)["state"] == "unchanged"
    rewrite(folder / TRANSFER, "4194304", "8388608")
    assert document("compile", TRANSFER)["state"] == "changed"


def test_compile_leaves_an_unchanged_plan_alone(compiled: Path) -> None:
    before = (compiled / PLAN).stat()
    run("compile", TRANSFER)
    after = (compiled / PLAN).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_compile_writes_where_it_is_told(folder: Path) -> None:
    assert run("compile", TRANSFER, "-o", "other.json").status == 0
    assert not (folder / PLAN).exists()
    assert (folder / "other.json").exists()


@pytest.mark.parametrize("target", ["policy.json", "./trainer.manifest.json", TRANSFER])
def test_compile_does_not_replace_its_inputs(folder: Path, target: str) -> None:
    before = contents(folder)
    outcome = run("compile", TRANSFER, "-o", target)
    assert outcome.status == 2
    assert "error[TS107]" in outcome.err
    assert contents(folder) == before


def test_compile_writes_nothing_that_the_verifier_refuses(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(inputs: Inputs, progress: Callable[[str], None]) -> TransferPlan:
        return compile_inputs(inputs, progress).model_copy(update={"fills": ()})

    monkeypatch.setattr("tranship.cli.compile.compile_inputs", forgetful)
    before = contents(compiled)
    outcome = run("compile", TRANSFER)
    assert outcome.status == 1
    assert "error[TS61" in outcome.err
    assert f"--> {PLAN} (not written):" in outcome.err
    assert contents(compiled) == before


def test_compile_check_tells_current_from_changed_and_missing(folder: Path) -> None:
    missing = run("compile", TRANSFER, "--check")
    assert (missing.status, (folder / PLAN).exists()) == (3, False)
    run("compile", TRANSFER)
    assert run("compile", TRANSFER, "--check").status == 0
    rewrite(folder / TRANSFER, "4194304", "8388608")
    before = contents(folder)
    stale = run("compile", TRANSFER, "--check")
    assert (stale.status, contents(folder)) == (3, before)
    assert stale.err == f"run: tranship compile {TRANSFER}\n"


def test_compile_counts_the_bytes_of_every_rank(folder: Path) -> None:
    summary = document("compile", TRANSFER)["summary"]
    plan = load(PLAN, TransferPlan).value
    sent = {rank: 0 for rank in range(2)}
    received = dict(sent)
    moves = 0
    for number, edge in enumerate(plan.edges):
        found = edge_moves(plan, number)
        sizes = payload(edge, found).padded.tolist()
        moves += len(sizes)
        for sender, receiver, size in zip(
            found.sender.rank.tolist(), found.receiver.rank.tolist(), sizes, strict=True
        ):
            sent[sender] += size
            received[receiver] += size
    assert summary["moves"] == moves
    assert summary["size"] == sum(sent.values()) == sum(received.values())
    assert summary["sender"]["most"] == max(sent.values())
    assert summary["receiver"]["most"] == max(received.values())
    assert summary["receiver"]["mean"] == sum(received.values()) // 2


def test_compile_bounds_the_time_by_the_busiest_link(folder: Path) -> None:
    # Sender 1 and receiver 0 share device 1; all that sender 0 sends leaves device 0 over the host.
    summary = document("compile", TRANSFER)["summary"]
    bound = summary["bound"]
    assert (bound["link"], bound["host"]) == ("host", 0)
    assert bound["seconds"] == bound["size"] / 400e9
    assert bound["size"] <= summary["sender"]["most"]


def test_compile_needs_links_to_bound_the_time(folder: Path) -> None:
    text = (folder / "placement.toml").read_text().partition("[links]")[0]
    (folder / "placement.toml").write_text(text)
    assert document("compile", TRANSFER)["summary"]["bound"] is None


@pytest.mark.parametrize("arguments", [[TRANSFER], [PLAN, "--transfer", TRANSFER]])
def test_verify_proves_all_eight(compiled: Path, arguments: list[str]) -> None:
    proofs = document("verify", *arguments)["proofs"]
    assert [proof["verdict"] for proof in proofs] == ["proved"] * 8
    assert run("verify", *arguments).status == 0


def test_verify_reports_the_proof_that_fails_and_where(compiled: Path) -> None:
    rewrite(compiled / PLAN, '"offset": 32768', '"offset": 32512')
    outcome = document("verify", TRANSFER)
    verdicts = [proof["verdict"] for proof in outcome["proofs"]]
    assert verdicts == ["refuted"] + ["not tried"] * 7
    assert run("verify", TRANSFER).status == 1
    finding = outcome["diagnostics"][0]
    assert finding["file"] == PLAN
    assert finding["pointer"].startswith("/edges/1")
    assert finding["line"] is not None


def test_verify_tries_the_other_proofs_where_the_first_holds(compiled: Path) -> None:
    plan = json.loads((compiled / PLAN).read_text())
    (compiled / PLAN).write_text(json.dumps({**plan, "fills": []}))
    proofs = document("verify", TRANSFER)["proofs"]
    assert proofs[0]["verdict"] == "proved"
    assert [proof["proof"] for proof in proofs if proof["verdict"] == "refuted"] == [2]


def test_verify_of_a_plan_needs_its_transfer_file(compiled: Path) -> None:
    assert run("verify", PLAN).status == 2
    assert run("verify", "policy.json").status == 2


def test_check_knows_files_by_what_they_say_they_are(compiled: Path) -> None:
    files = sorted(contents(compiled))
    found = document("check", *files)["files"]
    assert [one["file"] for one in found] == files
    assert [one["format"] for one in found] == [
        "tranship.manifest/1",
        "tranship.placement/1",
        "tranship.policy/1",
        "tranship.plan/1",
        "tranship.transfer/1",
        "tranship.manifest/1",
    ]
    assert run("check", *files).status == 0


def test_check_goes_on_after_a_file_with_errors(folder: Path) -> None:
    (folder / "bad.json").write_text('{"format": "tranship.policy/1", "allowed": []}')
    outcome = run("check", "bad.json", "missing.json", "policy.json")
    assert outcome.status == 2
    assert "error[TS110]" in outcome.err
    assert "error[TS100]" in outcome.err
    assert "policy.json  ok" in outcome.out
    assert run("check", "bad.json", "policy.json").status == 1


def test_check_names_the_formats_that_there_are(folder: Path) -> None:
    (folder / "bad.json").write_text('{"format": "tranship.manifest/2"}')
    (folder / "none.json").write_text("[]")
    outcome = run("check", "bad.json", "none.json")
    assert outcome.status == 1
    assert "error[TS114]" in outcome.err
    assert "error[TS111]" in outcome.err
    assert outcome.err.count("tranship.manifest/1") >= 2


@pytest.mark.parametrize(("field", "code"), [("side", "TS121"), ("ranks", "TS120")])
def test_compile_refuses_a_manifest_that_is_not_the_whole_side(
    folder: Path, field: str, code: str
) -> None:
    change = {"side": engine().side} if field == "side" else {"ranks": "0"}
    wrong = trainer().model_copy(update=change)
    (folder / "trainer.manifest.json").write_bytes(dump(wrong))
    outcome = run("compile", TRANSFER)
    assert outcome.status == 1
    assert f"error[{code}]" in outcome.err


def test_compile_reports_on_all_inputs_at_once(folder: Path) -> None:
    (folder / "policy.json").write_text("{}")
    (folder / "engine.manifest.json").write_text("[1]")
    (folder / "trainer.manifest.json").unlink()
    diagnostics = document("compile", TRANSFER)["diagnostics"]
    files = {one["file"] for one in diagnostics}
    assert files == {"policy.json", "engine.manifest.json", "trainer.manifest.json"}
    assert all(one["labels"][-1]["file"] == TRANSFER for one in diagnostics)


def test_show_keeps_what_a_pattern_matches(compiled: Path) -> None:
    def tensors(*arguments: str) -> list[str]:
        return [edge["tensor"] for edge in document("show", *arguments)["document"]["edges"]]

    expert = "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
    assert tensors(PLAN, "--tensor", "*.experts.*") == [expert]
    assert tensors(PLAN, "--tensor", "model.layers.3.mlp.experts.2.*") == [expert]
    assert tensors(PLAN, "--tensor", "*w2_weight") == [expert]
    assert len(tensors(PLAN)) == 5
    manifest = document("show", "engine.manifest.json", "--tensor", expert)["document"]
    assert [tensor["name"] for tensor in manifest["tensors"]] == [expert]
    assert [buffer["shape"] for buffer in manifest["buffers"]] == [[2, 256, 128]]


@pytest.mark.parametrize("file", [PLAN, "engine.manifest.json"])
def test_show_of_nothing_is_a_usage_error(compiled: Path, file: str) -> None:
    assert run("show", file, "--tensor", "model.layers.4.*").status == 2
    assert run("show", file, "--rank", "2").status == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_show_of_a_rank_has_all_of_its_moves(compiled: Path, rank: int) -> None:
    plan = load(PLAN, TransferPlan).value
    shown = document("show", PLAN, "--rank", str(rank))
    for side, peer in (("sender", "receiver"), ("receiver", "sender")):
        counted = dict[tuple[int, int], tuple[int, int]]()
        for number, edge in enumerate(plan.edges):
            moves = edge_moves(plan, number)
            sizes = payload(edge, moves).padded.tolist()
            own, others = getattr(moves, side).rank.tolist(), getattr(moves, peer).rank.tolist()
            for mine, other, size in zip(own, others, sizes, strict=True):
                if mine == rank:
                    before = counted.get((number, other), (0, 0))
                    counted[number, other] = (before[0] + 1, before[1] + size)
        told = {
            (part["edge"], one[peer]): (one["moves"], one["bytes"])
            for part in shown[side]
            for one in part["peers"]
        }
        assert told == counted


def test_show_of_a_rank_has_its_own_numbers_in_it(compiled: Path) -> None:
    page = run("show", PLAN, "--rank", "1").out
    assert "to    rank 1  [128..255, :]" in page
    assert "expert 2..3" in page
    assert "tp *" not in page


@pytest.mark.parametrize("file", [PLAN, "trainer.manifest.json", "engine.manifest.json"])
def test_show_without_filters_gives_the_whole_document(compiled: Path, file: str) -> None:
    shown = document("show", file)["document"]
    assert shown == json.loads((compiled / file).read_text())


def test_show_takes_plans_and_manifests_alone(folder: Path) -> None:
    assert run("show", "policy.json").status == 2


def test_explain_prints_the_page_as_it_is() -> None:
    page = Path(__file__).parents[2] / "schema" / "explanations" / "TS103.md"
    assert run("explain", "TS103").out == page.read_text()
    assert run("explain", "ts103").out == page.read_text()


def test_explain_lists_all_codes() -> None:
    lines = run("explain", "--list").out.splitlines()
    assert lines == [f"{code}  {title(code)}" for code in known_codes()]


@pytest.mark.parametrize("arguments", [[], ["TS000"], ["TS100", "--list"], ["schema"]])
def test_explain_needs_one_known_code_or_the_list(arguments: list[str]) -> None:
    assert run("explain", *arguments).status == 2


def test_schema_prints_and_writes_what_is_published(folder: Path) -> None:
    for name in NAMES:
        assert run("schema", name).out == published_bytes(name).decode()
    (folder / "out").mkdir()
    assert run("schema", "-o", "out").status == 0
    written = contents(folder / "out")
    assert written == {f"{name}.schema.json": published_bytes(name) for name in NAMES}


def test_schema_check_finds_a_stale_file(folder: Path) -> None:
    assert run("schema", "--check").status == 0
    run("schema", "-o", str(folder))
    assert run("schema", "--check", "-o", str(folder)).status == 0
    rewrite(folder / "plan.schema.json", "2020-12", "2019-09")
    stale = run("schema", "--check", "-o", str(folder))
    assert (stale.status, stale.out) == (3, "plan.schema.json is out of date\n")
    assert run("schema", "policy", "--check", "-o", str(folder)).status == 0


def test_schema_knows_its_formats() -> None:
    assert run("schema", "nothing").status == 2


def test_version_is_printed() -> None:
    assert re.fullmatch(r"tranship \d+\.\d+\.\d+\n", run("--version").out)

"""Whatever a file holds: a diagnostic, exit status 1 or 2, no traceback, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.outcome import Outcome, contents, run

TRANSFER, PLAN = "small.transfer.toml", "small.plan.json"

Breaker = Callable[[bytes], bytes]


def with_field(name: str, value: str) -> Breaker:
    """Put a field in front of all others, written as it is."""
    return lambda data: data.replace(b"{", b'{"%s": %s, ' % (name.encode(), value.encode()), 1)


JSON_BREAKERS: dict[str, tuple[Breaker, int]] = {
    "empty": (lambda data: b"", 2),
    "truncated": (lambda data: data[: len(data) // 2], 2),
    "not UTF-8": (lambda data: data.replace(b"model", b"mod\xffl", 1), 2),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), 2),
    "byte order mark": (lambda data: b"\xef\xbb\xbf" + data, 2),
    "duplicate key": (with_field("format", '"x"'), 2),
    "NaN": (with_field("world_size", "NaN"), 2),
    "infinity": (with_field("world_size", "-Infinity"), 2),
    "number beyond a double": (with_field("size", "1e999"), 2),
    "number beyond 64 bits": (with_field("size", "9" * 30), 2),
    "number of many digits": (with_field("size", "9" * 100_000), 2),
    "deep nesting": (with_field("deep", "[" * 100_000 + "]" * 100_000), 2),
    "open brackets": (lambda data: b"[" * 1_000_000, 2),
    "lone surrogate": (with_field("text", '"\\ud800"'), 2),
    "unknown field": (with_field("colour", "true"), 1),
    "other format": (lambda data: data.replace(b"tranship.", b"transhop.", 1), 1),
    "other version": (lambda data: data.replace(b'/1"', b'/2"', 1), 1),
    "list": (lambda data: b"[]", 1),
    "number": (lambda data: b"7", 1),
}

FIELD_BREAKERS: dict[str, dict[str, object]] = {
    "trainer.manifest.json": {
        "world_size": "two",
        "axes": {},
        "tensors": [{"name": 3}],
        "side": "middle",
        "buffers": [{"name": "b", "dtype": "bf17", "shape": [1]}],
    },
    "engine.manifest.json": {"world_size": 0, "tables": {"T": [1]}, "tensors": None},
    "policy.json": {"allow": [{"edge": "copy"}], "unused": "all"},
    PLAN: {"edges": [{}], "rounds": [{"slot": -1}], "options": "sha256:0", "staging": []},
}


def assert_refused(outcome: Outcome, status: int, before: dict[str, bytes], folder: Path) -> None:
    assert outcome.status == status, outcome
    assert "error[TS1" in outcome.err
    assert "TS900" not in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert contents(folder) == before


def commands(file: str) -> list[list[str]]:
    """The verbs that read a file."""
    found = [["check", file], ["verify", TRANSFER], ["diff", file, file]]
    if file != "policy.json":
        found.append(["show", file])
    if file != PLAN:
        found.append(["compile", TRANSFER])
    if file.endswith(".manifest.json"):
        found.append(["merge", file, "-o", "merged.json"])
        found.append(["breaking", file, "--against", file])
    return found


@pytest.mark.parametrize("file", ["trainer.manifest.json", "policy.json", PLAN])
@pytest.mark.parametrize("kind", JSON_BREAKERS)
def test_broken_json_is_refused(compiled: Path, file: str, kind: str) -> None:
    breaker, status = JSON_BREAKERS[kind]
    data = (compiled / file).read_bytes()
    (compiled / file).write_bytes(breaker(data))
    assert (compiled / file).read_bytes() != data
    before = contents(compiled)
    for command in commands(file):
        assert_refused(run(*command), status, before, compiled)


@pytest.mark.parametrize(
    ("file", "field"), [(file, field) for file in FIELD_BREAKERS for field in FIELD_BREAKERS[file]]
)
def test_wrong_types_and_values_are_refused(compiled: Path, file: str, field: str) -> None:
    document = json.loads((compiled / file).read_text())
    (compiled / file).write_text(json.dumps({**document, field: FIELD_BREAKERS[file][field]}))
    before = contents(compiled)
    for command in commands(file):
        assert_refused(run(*command), 1, before, compiled)


TOML_BREAKERS: dict[str, tuple[Breaker, int]] = {
    "truncated": (lambda data: data[: data.index(b"engine.manifest")], 2),
    "not UTF-8": (lambda data: data + b"# \xff\n", 2),
    "duplicate key": (lambda data: b'sender = "x"\n' + data, 2),
    "not a number": (lambda data: b"x = nan\n" + data, 2),
    "huge number": (lambda data: b"x = 99999999999999999999\n" + data, 2),
    "deep nesting": (lambda data: b"x = " + b"[" * 10_000 + b"]" * 10_000 + b"\n" + data, 2),
    "JSON": (lambda data: b"{}", 2),
    "date": (lambda data: b"x = 1979-05-27\n" + data, 1),
    "unknown field": (lambda data: b"x = 1\n" + data, 1),
    "wrong type": (lambda data: data.replace(b'"trainer.manifest.json"', b"3"), 1),
    "missing field": (lambda data: data.replace(b"receiver =", b"policy2 =", 1), 1),
    "number out of range": (lambda data: data.replace(b"4194304", b"1"), 1),
    "empty": (lambda data: b"", 1),
    "missing file": (lambda data: data.replace(b"trainer.", b"trainers."), 2),
    "folder for a file": (lambda data: data.replace(b'"trainer.manifest.json"', b'"sub.json"'), 2),
    "file of no known kind": (lambda data: data.replace(b'policy.json"', b'policy.txt"'), 2),
    "manifest for a policy": (
        lambda data: data.replace(b'"policy.json', b'"engine.manifest.json'),
        1,
    ),
}


@pytest.mark.parametrize("kind", TOML_BREAKERS)
def test_broken_transfer_file_is_refused(compiled: Path, kind: str) -> None:
    breaker, status = TOML_BREAKERS[kind]
    (compiled / "sub.json").mkdir()
    path = compiled / TRANSFER
    data = path.read_bytes()
    path.write_bytes(breaker(data))
    assert path.read_bytes() != data
    before = contents(compiled)
    for command in (["compile", TRANSFER], ["verify", TRANSFER]):
        assert_refused(run(*command), status, before, compiled)


@pytest.mark.parametrize(
    "command",
    [
        ["compile", "{}"],
        ["compile", TRANSFER, "-o", "{}"],
        ["verify", "{}"],
        ["verify", "{}", "--transfer", TRANSFER],
        ["verify", PLAN, "--transfer", "{}"],
        ["check", "{}"],
        ["show", "{}"],
        ["diff", "{}", PLAN],
        ["diff", PLAN, "{}"],
        ["breaking", "{}", "--against", "trainer.manifest.json"],
        ["breaking", "trainer.manifest.json", "--against", "{}"],
        ["merge", "{}", "-o", "merged.json"],
        ["merge", "trainer.manifest.json", "-o", "{}"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("path", ["sub.json", "no/such.json", "bad\0name.json"])
def test_folder_or_missing_file_is_refused(compiled: Path, command: list[str], path: str) -> None:
    (compiled / "sub.json").mkdir()
    before = contents(compiled)
    outcome = run(*(part.replace("{}", path) for part in command))
    assert_refused(outcome, 2, before, compiled)
    assert list((compiled / "sub.json").iterdir()) == []


@pytest.mark.parametrize(
    ("part", "code"), [("sender", "TS600"), ("options", "TS600"), ("policy", "TS600")]
)
def test_wrong_digest_is_found(compiled: Path, part: str, code: str) -> None:
    plan = json.loads((compiled / PLAN).read_text())
    wrong = "sha256:" + "0" * 64
    if part == "sender":
        plan["sender"]["manifest"] = wrong
    else:
        plan[part] = wrong
    (compiled / PLAN).write_text(json.dumps(plan))
    before = contents(compiled)
    outcome = run("verify", TRANSFER)
    assert (outcome.status, f"error[{code}]" in outcome.err) == (1, True)
    assert contents(compiled) == before


def test_json_format_puts_the_diagnostics_in_the_document(compiled: Path) -> None:
    (compiled / "policy.json").write_text("{")
    for command in (["check", "policy.json"], ["compile", TRANSFER], ["verify", TRANSFER]):
        outcome = run(*command, "--format", "json")
        assert (outcome.status, outcome.err) == (2, "")
        diagnostics = json.loads(outcome.out)["diagnostics"]
        assert [one["code"] for one in diagnostics] == ["TS102"]


@given(data=st.data())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_damage_to_a_file_is_an_internal_error(
    valid: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    """Bytes, numbers and words of a file are replaced by others."""
    file = data.draw(st.sampled_from(sorted(valid)))
    pieces = data.draw(st.sampled_from([b"", b'"', b"[", b"0", b"-1", b"4", b"null", b"tp", b"{}"]))
    content = valid[file]
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start, min(start + 6, len(content))))
    path = tmp_path / file
    path.write_bytes(content[:start] + pieces + content[end:])
    damaged = str(path.rename(tmp_path / f"damaged.{file}"))
    path.write_bytes(content)
    for command in (["check", damaged], ["show", damaged], ["diff", str(path), damaged]):
        outcome = run(*command)
        assert outcome.status in (0, 1, 2, 3)
        assert "TS900" not in outcome.err

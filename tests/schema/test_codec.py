import json
import os
import stat
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tranship.schema.codec import (
    Source,
    canonical_bytes,
    digest,
    dump,
    load,
    parse_json,
    read_text,
    validate,
    write_atomically,
)
from tranship.schema.diagnostics import Diagnostic, DiagnosticError


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Color(StrEnum):
    RED = "red"
    GREEN = "green"


class Plain(Frozen):
    kind: Literal["plain"]


class Scaled(Frozen):
    kind: Literal["scaled"]
    block: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...]
    scaled: int = 0


Name = Annotated[str, Field(pattern="^[a-z]+$")]


class Crate(Frozen):
    name: Name
    color: Color = Color.RED
    corner: tuple[int, int] = (0, 0)
    encoding: Annotated[Plain | Scaled, Field(discriminator="kind")] | None = None
    at: dict[Name, int | Annotated[str, Field(min_length=1)]] = {}


class Ship(Frozen):
    format: Literal["ship/1"] = "ship/1"
    length: Annotated[int, Field(ge=1, le=400)]
    draft: float | None = None
    crates: tuple[Crate, ...] = ()
    decks: dict[str, tuple[int, ...]] = {}

    @model_validator(mode="after")
    def _floats(self) -> "Ship":
        if self.draft is not None and self.draft > self.length:
            raise ValueError("The draft is more than the length")
        return self


CRATE = {"name": "a", "encoding": {"kind": "scaled", "block": [128, "all"]}, "at": {"x": "r // 2"}}
SHIP: dict[str, Any] = {
    "format": "ship/1",
    "length": 180,
    "draft": 9.5,
    "crates": [CRATE, {"name": "b", "color": "green", "corner": [1, 2]}],
    "decks": {"upper": [1, 2], "lower": []},
}
SHIP_TOML = """
format = "ship/1"
length = 180
draft = 9.5
decks = {upper = [1, 2], lower = []}

[[crates]]
name = "a"
encoding.kind = "scaled"
encoding.block = [128, "all"]
at.x = "r // 2"

[[crates]]
name = "b"
color = "green"
corner = [1, 2]
"""


def failures(path: Path, data: bytes | str) -> tuple[Diagnostic, ...]:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(DiagnosticError) as caught:
        load(path, Ship)
    assert all(found.at and found.at.file == str(path) for found in caught.value.diagnostics)
    return caught.value.diagnostics


def test_json_and_toml_give_the_same_document(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(SHIP))
    (tmp_path / "a.toml").write_text(SHIP_TOML)
    one, other = load(tmp_path / "a.json", Ship), load(tmp_path / "a.toml", Ship)
    assert one.value == other.value == Ship.model_validate_json(json.dumps(SHIP))
    assert one.digest == other.digest == digest(dump(one.value))
    assert one.source.text == json.dumps(SHIP)


def test_the_digest_is_that_of_the_value_alone(tmp_path: Path) -> None:
    def digest_of(ship: object, **layout: Any) -> str:
        (tmp_path / "a.json").write_text(json.dumps(ship, **layout))
        return load(tmp_path / "a.json", Ship).digest

    turned = dict(reversed(SHIP.items()))
    same = [digest_of(SHIP), digest_of(SHIP, indent=3), digest_of(turned)]
    spelled = {**SHIP, "crates": [{**CRATE, "color": "red"}, SHIP["crates"][1]]}
    assert {*same, digest_of(spelled)} == {same[0]}
    assert digest_of({**SHIP, "length": 181}) != same[0]


def edited(path: list[str | int], value: object) -> dict[str, Any]:
    """Return a copy of the ship with one value replaced, or added, or (with ...) removed."""
    ship = json.loads(json.dumps(SHIP))
    place = ship
    for part in path[:-1]:
        place = place[part]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return ship


LENGTH, COLOR, CORNER = ["length"], ["crates", 1, "color"], ["crates", 1, "corner"]
CODE: list[str | int] = ["crates", 0, "encoding"]


@pytest.mark.parametrize(
    ("path", "value", "code", "pointer", "words"),
    [
        (["lenght"], 1, "TS110", "/lenght", "the document has no field 'lenght'"),
        (["crates", 1, "nam"], 1, "TS110", "/crates/1/nam", "element 1 of 'crates' has no field"),
        ([*CODE, "blocks"], 1, "TS110", "/crates/0/encoding/blocks", "no field 'blocks'"),
        (LENGTH, ..., "TS111", "", "the document lacks 'length'"),
        (["crates", 1, "name"], ..., "TS111", "/crates/1", "element 1 of 'crates' lacks 'name'"),
        ([*CODE, "kind"], ..., "TS111", "/crates/0/encoding", "'encoding' lacks 'kind'"),
        (CORNER, [1], "TS111", "/crates/1/corner", "'corner' lacks element 1"),
        (CODE, {"kind": "scaled", "scaled": 1}, "TS111", "/crates/0/encoding", "'block'"),
        (LENGTH, "180", "TS112", "/length", 'expected an integer, found "180"'),
        (LENGTH, 180.0, "TS112", "/length", "expected an integer, found 180.0"),
        (LENGTH, True, "TS112", "/length", "expected an integer, found true"),
        (["crates"], {}, "TS112", "/crates", "an array, found an object of 0 fields"),
        (["crates", 1], [1], "TS112", "/crates/1", "an object, found an array of 1 value"),
        (["draft"], "deep", "TS112", "/draft", 'a number or null, found "deep"'),
        (["crates", 0, "at", "x"], None, "TS112", "/crates/0/at/x", "an integer or text, found"),
        ([*CODE, "scaled"], "1", "TS112", "/crates/0/encoding/scaled", "an integer"),
        (COLOR, "gren", "TS113", "/crates/1/color", 'one of "red", "green", found "gren"'),
        ([*CODE, "kind"], "x", "TS113", "/crates/0/encoding/kind", 'one of "plain", "scaled"'),
        ([*CODE, "block", 1], "al", "TS113", "/crates/0/encoding/block/1", 'integer or "all"'),
        (["format"], "ship/2", "TS114", "/format", 'expected "ship/1", found "ship/2"'),
        (["format"], 1, "TS114", "/format", 'expected "ship/1", found 1'),
        (LENGTH, 0, "TS115", "/length", "expected at least 1, found 0"),
        (LENGTH, 401, "TS115", "/length", "expected at most 400, found 401"),
        ([*CODE, "block", 0], 0, "TS115", "/crates/0/encoding/block/0", "at least 1, found 0"),
        (["crates", 0, "at", "x"], "", "TS115", "/crates/0/at/x", "a length of at least 1"),
        (CORNER, [1, 2, 3], "TS115", "/crates/1/corner", "a length of at most 2"),
        (["crates", 1, "name"], "B", "TS116", "/crates/1/name", '^[a-z]+$, found "B"'),
        (["crates", 0, "at", "X"], 1, "TS116", "/crates/0/at/X", '^[a-z]+$, found "X"'),
        (["draft"], 200.5, "TS117", "", "the document: the draft is more than the length"),
    ],
)
def test_a_wrong_value_gets_its_code_place_and_words(
    tmp_path: Path, path: list[str | int], value: object, code: str, pointer: str, words: str
) -> None:
    ship = edited(path, value)
    (found,) = failures(tmp_path / "a.json", canonical_bytes(ship))
    assert found.at
    assert (found.code, found.at.pointer) == (code, pointer)
    assert words in found.message
    if pointer and value is not ...:
        wrong = path[-1] if code == "TS110" or path[-1] == "X" else value
        rest = canonical_bytes(ship).decode().split("\n")[(found.at.line or 0) - 1]
        assert rest[(found.at.column or 0) - 1 :].startswith(json.dumps(wrong))


@pytest.mark.parametrize(
    ("path", "value", "suggestion"),
    [
        (["lenght"], 1, None),  # the field that resembles it is there already
        (["crates", 1, "Encoding"], {"kind": "plain"}, "encoding"),
        (COLOR, "gren", '"green"'),
        ([*CODE, "kind"], "plane", '"plain"'),
        (COLOR, "chartreuse", None),
    ],
)
def test_near_names_are_suggested(
    tmp_path: Path, path: list[str | int], value: object, suggestion: str | None
) -> None:
    (found,) = failures(tmp_path / "a.json", canonical_bytes(edited(path, value)))
    assert found.suggestion == suggestion


def test_all_errors_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    text = SHIP_TOML.replace("180", '"180"').replace('"scaled"', '"plain"').replace("green", "blue")
    found = failures(tmp_path / "a.toml", text)
    assert [(one.code, one.at and one.at.pointer, one.at and one.at.line) for one in found] == [
        ("TS112", "/length", 3),
        ("TS110", "/crates/0/encoding/block", 10),
        ("TS113", "/crates/1/color", 15),
    ]


def test_a_wrong_format_hides_the_errors_that_follow_from_it(tmp_path: Path) -> None:
    (found,) = failures(tmp_path / "a.json", '{"format": "barge/1", "beam": 1}')
    assert found.code == "TS114"


def test_errors_without_number_stay_bounded(tmp_path: Path) -> None:
    ship = {"length": 1, "crates": [{"nam": "a"}] * 20_000}
    for data, count in (
        (json.dumps(ship), 40_000),
        ('{"a": 0' + ', "a": 1' * 20_000 + "}", 20_000),
    ):
        found = failures(tmp_path / "a.json", data)
        assert len(found) == 101
        assert found[-1].code == "TS118"
        assert f"{count - 100:,} more" in found[-1].message


def test_errors_in_data_without_text_keep_their_pointers() -> None:
    ship = edited(["crates", 1, "corner"], ["a", "b"])
    with pytest.raises(DiagnosticError) as caught:
        validate(Ship, ship, Source("made", ""))
    pointers = [found.at.pointer for found in caught.value.diagnostics if found.at]
    assert pointers == ["/crates/1/corner/0", "/crates/1/corner/1"]


TITLES = st.text('\u20ac\n"z', max_size=3)
SHIPS = st.builds(
    Ship,
    length=st.integers(1, 400),
    draft=st.none() | st.floats(0, 1),
    crates=st.lists(
        st.builds(
            Crate,
            name=st.text("abc", min_size=1, max_size=3),
            color=st.sampled_from(Color),
            corner=st.tuples(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1)),
            encoding=st.none()
            | st.just(Plain(kind="plain"))
            | st.builds(
                Scaled,
                kind=st.just("scaled"),
                block=st.lists(st.just("all") | st.integers(1, 9), max_size=3).map(tuple),
            ),
        ),
        max_size=3,
    ).map(tuple),
    decks=st.dictionaries(
        st.text('\u20ac\n"z'), st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=3
    ),
)


@given(SHIPS)
@settings(deadline=None)
def test_models_round_trip_through_their_bytes(ship: Ship) -> None:
    text = dump(ship).decode()
    assert text.startswith('{\n  "format": "ship/1",\n')
    assert validate(Ship, parse_json(text, "a.json"), Source("a.json", text)) == ship


def test_fields_at_their_default_are_not_written_but_the_format_is() -> None:
    assert dump(Ship(length=3, crates=(Crate(name="a"),))).decode() == (
        '{\n  "format": "ship/1",\n  "length": 3,\n  "crates": [\n    {"name": "a"}\n  ]\n}\n'
    )


@pytest.mark.parametrize(
    "name", ["missing.json", "folder.json", "nul\0.json", "a/b.json", "x" * 300]
)
def test_what_is_no_file_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DiagnosticError, match="TS100"):
        read_text(tmp_path / name)


def test_bytes_that_are_not_utf8_are_named_with_their_offset(tmp_path: Path) -> None:
    (found,) = failures(tmp_path / "a.json", '{"\u00fc\u20ac":\n '.encode() + b"\xc3(}")
    assert "0xc3 at offset 11" in found.message


def test_writing_replaces_the_file_and_keeps_its_permissions(tmp_path: Path) -> None:
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    write_atomically(path, b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_atomically(link, b"new")
    assert path.read_bytes() == b"new"
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["a.json", "link.json"]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod", "open"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        expected = DiagnosticError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["folder", "missing/a.json", "file/a.json", "nul\0", "x" * 300])
def test_what_cannot_be_written_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DiagnosticError, match="TS107"):
        write_atomically(tmp_path / name, b"new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@st.composite
def mutated(draw: st.DrawFn, document: bytes) -> bytes:
    """Cut, repeat, overwrite and insert parts of a document."""
    data = bytearray(document)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        pieces = [b"", bytes(data[start:end]) * 2, draw(st.binary(max_size=3))]
        tokens = [b'"', b"\\", b"[", b"}", b"'''", b'"""', b"\n", b"\\u", b"1e9999", b"= ", b"."]
        data[start:end] = draw(st.sampled_from(pieces + tokens))
    return bytes(data)


@given(
    data=st.data(),
    suffix=st.sampled_from([".json", ".toml"]),
)
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_document_or_diagnostics(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    valid = canonical_bytes(SHIP) if suffix == ".json" else SHIP_TOML.encode()
    content = data.draw(st.binary(max_size=64) | mutated(valid))
    path.write_bytes(content)
    try:
        document = load(path, Ship)
    except DiagnosticError as error:
        for found in error.diagnostics:
            assert found.at
            assert found.at.line is None or found.at.line <= content.count(b"\n") + 1
    else:
        assert document.digest == digest(dump(document.value))

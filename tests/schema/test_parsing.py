import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import RootModel

from tranship.schema.codec import MAX_DEPTH, load, parse_json, parse_toml
from tranship.schema.diagnostics import DiagnosticError, Location


@pytest.mark.parametrize(
    ("name", "data", "code", "line", "column", "pointer"),
    [
        ("a.json", b"", "TS102", 1, 1, ""),
        ("a.json", b" \n \n", "TS102", 3, 1, ""),
        ("a.json", b'{"length": 1,\n "draft" 2}', "TS102", 2, 10, ""),
        ("a.json", b'{"length": 1}\n x', "TS102", 2, 2, ""),
        ("a.json", b'{"length": 1', "TS102", 1, 13, ""),
        ("a.json", b'{"length": "ab', "TS102", 1, 12, ""),
        ("a.json", b'{"length": 01}', "TS102", 1, 13, ""),
        ("a.json", b'\xef\xbb\xbf{"length": 1}', "TS102", 1, 1, ""),
        ("a.json", '{"a": "\u00e9",\n"e": "'.encode() + b'\xff"}', "TS101", 2, 7, ""),
        ("a.json", b'{"length": 1,\n "length": 2}', "TS103", 2, 2, "/length"),
        ("a.json", b'{"length": 1,\n "\\u006cength": 2}', "TS103", 2, 2, "/length"),
        ("a.json", b'{"decks": {"a": [NaN]}}', "TS104", 1, 18, "/decks/a/0"),
        ("a.json", b'{"draft": -Infinity}', "TS104", 1, 11, "/draft"),
        ("a.json", b'{"draft": 1e999}', "TS104", 1, 11, "/draft"),
        ("a.json", b'{"length": 9223372036854775808}', "TS104", 1, 12, "/length"),
        ("a.json", b'{"length": -9223372036854775809}', "TS104", 1, 12, "/length"),
        ("a.json", b'{"length": ' + b"7" * 5000 + b"}", "TS104", 1, 12, "/length"),
        ("a.json", b'{"x": "\\ud800"}', "TS108", 1, 7, "/x"),
        ("a.json", b'{"x": "\\udc00\\ud800"}', "TS108", 1, 7, "/x"),
        ("a.toml", b'format = "ship/1"\nlength = \n', "TS106", 2, 10, ""),
        ("a.toml", b'format = "ship/1"\nlength = [1', "TS106", 2, 12, ""),
        ("a.toml", b"length = 1\nlength = 2\n", "TS106", 2, 11, ""),
        ("a.toml", b"\xef\xbb\xbflength = 1", "TS106", 1, 1, ""),
        ("a.toml", b"length = 1 # \xff", "TS101", 1, 14, ""),
        ("a.toml", b"length = 1\ndraft = nan", "TS104", 2, 9, "/draft"),
        ("a.toml", b"length = 0x8000_0000_0000_0000", "TS104", 1, 10, "/length"),
        ("a.toml", b"length = " + b"7" * 5000, "TS104", None, None, ""),
        ("a.toml", b"[decks]\nupper = [ 07:32:00 ]", "TS112", 2, 11, "/decks/upper/0"),
        ("a.yaml", b"length: 1", "TS109", None, None, ""),
    ],
)
def test_broken_text_is_refused_at_its_place(
    tmp_path: Path, name: str, data: bytes, code: str, line: int, column: int, pointer: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DiagnosticError) as caught:
        load(tmp_path / name, RootModel[object])
    (found,) = caught.value.diagnostics
    at = Location(str(tmp_path / name), pointer, line, column)
    assert (found.code, found.at) == (code, at)


@pytest.mark.parametrize("parse", [parse_json, parse_toml])
def test_a_byte_order_mark_is_called_that(parse: Callable[[str, str], object]) -> None:
    with pytest.raises(DiagnosticError, match="a byte order mark comes before"):
        parse("\ufeffa = 1", "a")


def test_every_truncation_is_refused_with_a_place() -> None:
    text = '{\n  "a": [{"b\\n": -1.5e3, "c": true}, null],\n  "d": {}\n}'
    for end in range(len(text)):
        with pytest.raises(DiagnosticError) as caught:
            parse_json(text[:end], "a.json")
        (found,) = caught.value.diagnostics
        assert found.code == "TS102"
        assert found.at
        assert found.at.line == text.count("\n", 0, end) + 1
        assert found.at.column


def test_all_repeated_keys_are_reported_with_their_first_occurrence() -> None:
    text = '{"a": {"b": 1, "b": 2},\n "c": [{"~/": 1,\n "~/": {"d": 1, "d": 2}}]}'
    with pytest.raises(DiagnosticError) as caught:
        parse_json(text, "a.json")
    places = [(found.at, found.labels[0].at) for found in caught.value.diagnostics]
    assert [(at.pointer, at.line, at.column, first.column) for at, first in places if at] == [
        ("/a/b", 1, 16, 8),
        ("/c/0/~0~1", 3, 2, 9),
        ("/c/0/~0~1/d", 3, 17, 9),
    ]


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth_is_limited_in_json(opening: str, closing: str) -> None:
    fits = MAX_DEPTH // (opening.count("[") + opening.count("{"))
    inner = '"[[[{{{\\""'
    text = opening * fits + inner + closing * fits
    assert parse_json(text, "a.json") == json.loads(text)
    for depth in (fits + 1, 100_000):
        for text in (opening * depth + inner + closing * depth, opening * depth):
            with pytest.raises(DiagnosticError, match="TS105"):
                parse_json(text, "a.json")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "[" * 65 + "]" * 65,
        "a = " + "{b = " * 65 + "1" + "}" * 65,
        "a." * 50_000 + "a = 1",
        '"a" . ' * 65 + "a = 1",
        "[" + "a." * 100 + "a]",
        "[" + "a." * 40 + "a]\n" + "b." * 40 + "b = 1",
        "a = " + ("{" + "b." * 40 + "b = ") * 60 + "1" + "}" * 60,
    ],
)
def test_depth_is_limited_in_toml(text: str) -> None:
    with pytest.raises(DiagnosticError, match="TS105"):
        parse_toml(text, "a.toml")


def test_brackets_in_toml_strings_and_comments_have_no_depth() -> None:
    brackets = "[" * 100
    text = f"""a = "{brackets}" # {brackets}\nb = '{brackets}'
c = '''\n'{brackets}'''\nd = \"\"\"\n"\\"{brackets}\"\"\"\n"{brackets}" = 1"""
    assert parse_toml(text, "a.toml") == {
        "a": brackets,
        "b": brackets,
        "c": f"'{brackets}",
        "d": f'""{brackets}',
        brackets: 1,
    }


def reference_accepts(text: str) -> bool:
    """Judge a text by RFC 8259 with the stated limits, from the events that `json` reports."""

    def refuse(_: str) -> None:
        raise ValueError

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError
        return {key.encode().decode(): value for key, value in pairs}

    def integer(digits: str) -> int:
        if not -(2**63) <= int(digits) <= 2**63 - 1:
            raise ValueError
        return int(digits)

    def real(digits: str) -> float:
        if math.isinf(float(digits)):
            raise ValueError
        return float(digits)

    try:
        value: object = json.loads(
            text,
            parse_constant=refuse,
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=real,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


FRAGMENTS = [*'[]{},: \n"1a-', '"a":', '"a"', "1.5", "1e400", "NaN", "null", '"\\ud800"', "\\"]
NUMBERS = ["9223372036854775807", "9223372036854775808", "-9223372036854775808"]


@given(
    st.lists(st.sampled_from([*FRAGMENTS, *NUMBERS, '"\\ud83d\\ude00"']), max_size=8).map("".join)
)
@settings(deadline=None, max_examples=400)
def test_strict_json_accepts_what_the_rules_allow_and_reads_it_as_json_does(text: str) -> None:
    try:
        value = parse_json(text, "a.json")
    except DiagnosticError:
        assert not reference_accepts(text)
    else:
        assert reference_accepts(text)
        assert value == json.loads(text)

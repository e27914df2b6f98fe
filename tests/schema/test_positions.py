import json
import tomllib
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tranship.schema.diagnostics import Location
from tranship.schema.positions import Source, join_pointer, pointer_parts, scan_json, scan_toml

KEYS = st.text(st.sampled_from('ab~/"\\\n\u20ac'), max_size=3)
VALUES = st.recursive(
    st.sampled_from([None, True, -1.5, 7, "x", '["{,:}\\', "\u00fc\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)
Path = tuple[str | int, ...]
Token = tuple[str, Path | None, str]
"""A text; the path of what begins with it, and whether that is a name or a value."""


def members(value: Any) -> dict[str | int, Any]:
    if isinstance(value, dict):
        return cast(dict[str | int, Any], value)
    return dict(enumerate(cast(list[Any], value))) if isinstance(value, list) else {}


def tokens(value: Any, path: Path = ()) -> Iterator[Token]:
    if not isinstance(value, dict | list):
        yield json.dumps(value, ensure_ascii=False), path, "value"
        return
    yield "{" if isinstance(value, dict) else "[", path, "value"
    comma = ""
    for key, inner in members(value).items():
        yield comma, None, ""
        if isinstance(key, str):
            yield json.dumps(key), (*path, key), "name"
            yield ":", None, ""
        yield from tokens(inner, (*path, key))
        comma = ","
    yield "}" if isinstance(value, dict) else "]", None, ""


@given(VALUES, st.lists(st.text(" \n\t\r", max_size=2), min_size=1))
@settings(deadline=None)
def test_json_names_and_values_are_found_where_they_were_written(
    value: object, spaces: list[str]
) -> None:
    text, expected = "", dict[tuple[str, str], tuple[int, int]]()
    for number, (token, path, what) in enumerate(tokens(value)):
        text += spaces[number % len(spaces)]
        if path is not None:
            lines = text.split("\n")
            expected[join_pointer(path), what] = len(lines), len(lines[-1]) + 1
        text += token
    source = Source("a.json", text)
    assert json.loads(text) == value
    for (pointer, what), (line, column) in expected.items():
        find = source.locate if what == "value" else source.locate_key
        assert find(pointer) == Location("a.json", pointer, line, column)


TOML = '''\
# [no]
format = "x" # [[no]]
a.b."c.d" = [1, [2, 3], {x = 1, y.z = """no = ]
"""""}, # no ]
 'q' ]
[ t . "\\u0075/" ]
k = 'v'
[[r]]
n = 1979-05-27 07:32:00
m = {}
e = []
[r.s]
z=1
[[r]]
[[r.w]]
[[r.w]]
o=true
[t.v]
'''
TOML_PLACES = {
    "": (1, 1, "#"),
    "/format": (2, 10, '"x"'),
    "/a": (3, 1, "a.b"),
    "/a/b": (3, 1, "a.b"),
    "/a/b/c.d": (3, 13, "[1"),
    "/a/b/c.d/0": (3, 14, "1,"),
    "/a/b/c.d/1": (3, 17, "[2"),
    "/a/b/c.d/1/0": (3, 18, "2,"),
    "/a/b/c.d/1/1": (3, 21, "3]"),
    "/a/b/c.d/2": (3, 25, "{x"),
    "/a/b/c.d/2/x": (3, 30, "1,"),
    "/a/b/c.d/2/y": (3, 33, "y.z"),
    "/a/b/c.d/2/y/z": (3, 39, '"""no'),
    "/a/b/c.d/3": (5, 2, "'q'"),
    "/t": (6, 1, "["),
    "/t/u~1": (6, 1, "["),
    "/t/u~1/k": (7, 5, "'v'"),
    "/r": (8, 1, "[[r]]"),
    "/r/0": (8, 1, "[[r]]"),
    "/r/0/n": (9, 5, "1979-05-27 07"),
    "/r/0/m": (10, 5, "{}"),
    "/r/0/e": (11, 5, "[]"),
    "/r/0/s": (12, 1, "[r.s]"),
    "/r/0/s/z": (13, 3, "1"),
    "/r/1": (14, 1, "[[r]]"),
    "/r/1/w": (15, 1, "[[r.w]]"),
    "/r/1/w/0": (15, 1, "[[r.w]]"),
    "/r/1/w/1": (16, 1, "[[r.w]]"),
    "/r/1/w/1/o": (17, 3, "true"),
    "/t/v": (18, 1, "[t.v]"),
}


def pointers(value: Any, path: Path = ()) -> Iterator[str]:
    yield join_pointer(path)
    for key, inner in members(value).items():
        yield from pointers(inner, (*path, key))


def test_toml_values_are_found_where_they_are() -> None:
    source = Source("a.toml", TOML)
    assert set(pointers(tomllib.loads(TOML))) == set(TOML_PLACES)
    for pointer, (line, column, text) in TOML_PLACES.items():
        assert source.locate(pointer) == Location("a.toml", pointer, line, column)
        assert TOML.split("\n")[line - 1][column - 1 :].startswith(text)


def test_toml_names_are_found_where_they_are() -> None:
    source = Source("a.toml", TOML)
    found = [source.locate_key(pointer) for pointer in ("/t/u~1/k", "/a/b/c.d/2/y/z", "/a/b/c.d/1")]
    assert [(at.line, at.column) for at in found] == [(7, 1), (3, 33), (3, 17)]


@pytest.mark.parametrize(
    ("pointer", "found", "column"),
    [("/a/1/b", "/a/1", 11), ("/a/7", "/a", 7), ("/b/c", "", 1), ("/a/0/0", "/a/0", 8)],
)
def test_what_does_not_exist_is_found_at_what_is_around_it(
    pointer: str, found: str, column: int
) -> None:
    assert Source("a.json", '{"a": [1, {}]}').locate(pointer) == Location(
        "a.json", found, 1, column
    )


@given(st.lists(st.text("a/~01", max_size=4)))
def test_pointers_can_be_read_back(parts: list[str]) -> None:
    assert pointer_parts(join_pointer(parts)) == parts


def test_pointers_are_escaped_as_rfc_6901_says() -> None:
    # RFC 6901, section 5
    assert [join_pointer([part]) for part in ("a/b", "m~n", "", " ")] == [
        "/a~1b",
        "/m~0n",
        "/",
        "/ ",
    ]


@given(st.text(st.sampled_from("[]{}\",:'\\ \n#=.a1"), max_size=12))
@settings(deadline=None, max_examples=300)
def test_scanners_take_any_text(text: str) -> None:
    assert scan_json(text).root is None or text.strip()
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assert scan_toml(text).root is None
    else:
        assert scan_toml(text).root is not None


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 100_000, '"' + '\\"' * 200_000, "\\" * 200_000, "'''a" * 99_999],
)
def test_scanners_take_hostile_text(text: str) -> None:
    assert Source("a.json", text).locate("/0/0").line in (1, None)
    assert Source("a.toml", text).locate("/0/0").line is None

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tranship.schema.codec import MAX_DEPTH, canonical_bytes, digest, parse_json

TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | INTS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@given(JSON_VALUES | st.dictionaries(TEXTS, JSON_VALUES, max_size=4))
@settings(deadline=None)
def test_canonical_bytes_round_trip_and_are_a_fixed_point(value: object) -> None:
    data = canonical_bytes(value)
    again = parse_json(data.decode(), "a.json")
    assert again == json.loads(data) == value
    assert repr(again) == repr(value)  # the order of keys, 1 and 1.0 and True, 0.0 and -0.0
    assert canonical_bytes(again) == data
    assert data.endswith(b"\n")
    assert b"\r" not in data


LAYOUT = """\
{
  "format": "ship/1",
  "draft": 9.5,
  "crates": [
    {"name": "a", "encoding": {"block": [128, "all"]}},
    {"name": "b", "at": {}}
  ],
  "decks": {
    "upper": [1, 2],
    "lower": []
  },
  "empty": {},
  "none": [],
  "mixed": {"a": [1], "b": 1},
  "pairs": [{"k": "\u00fc"}, 1]
}
"""


def test_the_layout() -> None:
    assert canonical_bytes(json.loads(LAYOUT)).decode() == LAYOUT
    assert canonical_bytes([{"a": 1}, {"a": 2}]) == b'[{"a": 1}, {"a": 2}]\n'


def nested(depth: int) -> list[object]:
    return [nested(depth - 1)] if depth > 1 else []


@pytest.mark.parametrize(
    "value",
    [
        {"a": math.nan},
        [math.inf],
        2**63,
        -(2**63) - 1,
        "\ud800",
        {"\udfff": 1},
        {1: 2},
        {"a": {1, 2}},
        b"a",
        nested(MAX_DEPTH + 1),
    ],
)
def test_what_could_not_be_read_back_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match=", at "):
        canonical_bytes(value)


def test_the_deepest_value_that_is_read_can_be_written() -> None:
    value = nested(MAX_DEPTH)
    assert parse_json(canonical_bytes(value).decode(), "a.json") == value


def test_the_digest_is_sha256_as_published() -> None:
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(b"abc") == f"sha256:{expected}"

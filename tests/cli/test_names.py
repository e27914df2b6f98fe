"""Names are equal if and only if their texts and numbers are, however they are written."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tranship.compiler.diffs.names import name_keys
from tranship.compiler.diffs.rows import row_codes
from tranship.schema.template import fill_template, parse_template

TEXTS = st.text(st.sampled_from(".w0129-"), max_size=4)
TEMPLATES = st.lists(st.one_of(TEXTS, st.sampled_from(["{i}", "{j}", "{i - 2}", "{i * 10}"])))
VALUES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=6)


def keys_and_names(parts: list[str], values: list[tuple[int, int]]) -> list[tuple[object, str]]:
    text = "".join(parts)
    columns = np.array(values, dtype=np.int64)
    named = {"i": columns[:, 0], "j": columns[:, 1]}
    found: list[tuple[object, str]] = []
    for group in name_keys(text, named, len(values), {}):
        rows: list[int] = group.rows.tolist()
        for row, numbers in zip(rows, group.numbers.tolist(), strict=True):
            first, second = values[row]
            name = fill_template(parse_template(text), {"i": first, "j": second}, {})
            found.append(((group.texts, tuple(numbers)), name))
    assert len(found) == len(values)
    return found


@given(TEMPLATES, VALUES, TEMPLATES, VALUES)
@settings(max_examples=200, deadline=None)
def test_keys_are_equal_where_names_are(
    one: list[str], first: list[tuple[int, int]], other: list[str], second: list[tuple[int, int]]
) -> None:
    every = [*keys_and_names(one, first), *keys_and_names(other, second)]
    for key, name in every:
        assert all((key == other_key) == (name == other_name) for other_key, other_name in every)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_rows_have_equal_codes_where_they_are_equal(data: st.DataObject) -> None:
    width = data.draw(st.integers(0, 4))
    numbers = st.sampled_from([0, 1, 5, -(2**61), 2**61])
    rows = data.draw(st.lists(st.tuples(*[numbers] * width), min_size=1, max_size=6))
    codes = row_codes(np.array(rows, dtype=np.int64).reshape(len(rows), width)).tolist()
    for row, code in zip(rows, codes, strict=True):
        assert [row == other for other in rows] == [code == other for other in codes]

"""The expressions of data files against Python's own arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tranship.models.algebra import Ranges, combine, is_multiple
from tranship.models.language import (
    LanguageError,
    NotDivisibleError,
    Scope,
    Table,
    closed_form,
    evaluate,
    expression,
)
from tranship.schema.expression import (
    Constant,
    Expression,
    Operation,
    Variable,
    parse,
    to_text,
)
from tranship.schema.expression import evaluate as value_of

AXES = {"tp": (0, 3), "ep": (0, 7), "layer": (2, 9)}
RANGES = Ranges(AXES, {"stage": np.array([0, 0, 0, 1, 1, 2, 2, 2, 5, 5], dtype=np.int64)})
KNOWN = {"heads": 24, "size": 7, "on": 1, "none": None, "sizes": (3, 1, 4), "model": "a"}
SYMBOLIC = {name: Variable(name) for name in AXES}
SCOPE = Scope(
    {**KNOWN, **SYMBOLIC, "stage": Table("stage", (0, 0, 0, 1, 1, 2, 2, 2, 5, 5))}, RANGES
)


def ceil(left: int, right: int) -> int:
    return -(-left // right)


def texts() -> st.SearchStrategy[str]:
    """Draw arithmetic on known names, axes and numbers."""
    leaves = st.sampled_from(["heads", "size", "tp", "ep", "layer", "stage[layer]"])
    leaves |= st.integers(0, 300).map(str)

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        positive = st.sampled_from(["heads", "size", "1", "2", "4", "128", "256"])
        sums = st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({' '.join(t)})")
        parts = st.tuples(inner, st.sampled_from(["//", "%"]), positive)
        ends = st.tuples(st.sampled_from(["min", "max"]), inner, inner)
        return (
            sums
            | parts.map(lambda t: f"({' '.join(t)})")
            | ends.map(lambda t: f"{t[0]}({t[1]}, {t[2]})")
            | st.tuples(inner, positive).map(lambda t: f"ceil({t[0]}, {t[1]})")
        )

    return st.recursive(leaves, grow, max_leaves=6)


@settings(max_examples=300, deadline=None)
@given(texts(), st.integers(0, 3), st.integers(0, 7), st.integers(2, 9))
def test_what_is_left_of_an_expression_has_the_same_value(text: str, tp: int, ep: int, layer: int):
    stage = RANGES.tables["stage"].tolist()
    names = KNOWN | {"tp": tp, "ep": ep, "layer": layer, "stage": stage}
    expected = eval(text, {"ceil": ceil, "min": min, "max": max}, names)
    found = expression(text, SCOPE)
    again = parse(to_text(found))
    place = {"tp": tp, "ep": ep, "layer": layer}
    assert value_of(found, place, RANGES.tables) == expected
    assert value_of(again, place, RANGES.tables) == expected


@settings(max_examples=100, deadline=None)
@given(texts(), st.integers(1, 256))
def test_a_multiple_is_one_everywhere(text: str, of: int):
    found = expression(text, SCOPE)
    if is_multiple(found, of):
        for tp in range(4):
            for layer in range(2, 10):
                place = {"tp": tp, "ep": 7 - tp, "layer": layer}
                assert value_of(found, place, RANGES.tables) % of == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tp * heads * 128 // 256", "tp * 12"),
        ("min(tp * 256, 1024)", "tp * 256"),
        ("min(max(1000 - tp * 256, 0), 256)", "min(1000 - tp * 256, 256)"),
        ("(tp * 512 + 128) // 128", "tp * 4 + 1"),
        ("ep // 8", 0),
        ("ep % 8", "ep"),
        ("(layer + 3) - 3", "layer"),
        ("tp // 2 // 2", 0),
        ("tp * 256 % 128", 0),
        ("ep * 64 // 128", "ep // 2"),
    ],
)
def test_expressions_come_out_short(text: str, expected: int | str):
    assert to_text(expression(text, SCOPE)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none == None and heads > 3", 1),
        ("on or missing", 1),
        ("not on", 0),
        ("model in ['a', 'b']", 1),
        ("1 if heads in sizes else 2", 2),
        ("sizes[2] + len(sizes)", 7),
        ("[1] * 2 + [size]", (1, 1, 7)),
        ("part(4, sizes) * 10 + before(2, sizes)", 24),
        ("part(3, sizes)", 1),
        ("sum(sizes)", 8),
        ("scaled(heads, 0.5)", 12),
        ("divide(heads, 8)", 3),
        ("'x.' + model", "x.a"),
        ("2 < heads < 25", 1),
        ("-size", -7),
    ],
)
def test_what_is_known_is_worked_out(text: str, expected: object):
    assert evaluate(text, SCOPE) == expected


@pytest.mark.parametrize(
    "text",
    [
        "missing",
        "heads +",
        "tp > 1",
        "heads // tp",
        "heads // 0",
        "sizes[3]",
        "sizes[tp]",
        "heads.x",
        "open('x')",
        "sum(heads)",
        "0.5 * heads",
        "model + 1",
        "min(1, 2, 3)",
    ],
)
def test_what_has_no_value_is_refused(text: str):
    with pytest.raises(LanguageError):
        expression(text, SCOPE)


def test_a_division_that_leaves_a_remainder_says_of_what():
    with pytest.raises(NotDivisibleError, match=r"^heads = 24 is not divisible by 5$"):
        evaluate("divide(heads, 5)", SCOPE)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 0, 1, 1, 2), "layer // 2"),
        ((0, 1, 1, 1, 2), "(layer + 2) // 3"),
        ((0, 1, 2, 0, 1), "layer % 3"),
        ((0, 1, 2, 3, 4), "layer"),
        ((0, 0, 0, 0, 0), 0),
        ((1, 0, 2), "t[layer]"),
    ],
)
def test_a_table_that_is_arithmetic_is_written_as_such(
    values: tuple[int, ...], expected: int | str
):
    found = closed_form(Table("t", values), Variable("layer"), Ranges({}, {}))
    shown = found if isinstance(found, int) else to_text(_expression(found))
    assert shown == expected


def _expression(value: object) -> Expression:
    assert isinstance(value, Expression)
    return value


def test_names_without_known_ranges_are_left_alone():
    free = Ranges({}, {})
    found = combine("min", Variable("a"), Constant(3), free)
    assert found == Operation("min", Variable("a"), Constant(3))

"""Columns made from expressions: what is found gives the same column, as simply."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tranship.schema.expression import IntArray, evaluate, parse, tables, to_text
from tranship.schema.folding.fit import fit, make_frame
from tranship.schema.folding.terms import complexity, evaluate_draft, name_tables, rename_tables

LAYER, EXPERT, TP, FSDP = (
    grid.reshape(-1)
    for grid in np.meshgrid(
        np.arange(1, 7), np.arange(12), np.arange(2), np.arange(5), indexing="ij"
    )
)
VALUES: dict[str, IntArray] = {"layer": LAYER, "expert": EXPERT, "tp": TP, "fsdp": FSDP}
FRAME = make_frame(
    {"layer": LAYER, "expert": EXPERT},
    {"tp": TP, "fsdp": FSDP, "rank": TP + 2 * FSDP},
    {"tp": 2, "fsdp": 5, "rank": 10},
)


def column(text: str) -> IntArray:
    values = evaluate(parse(text), VALUES, {})
    return np.broadcast_to(np.asarray(values), LAYER.shape).astype(np.int64)


@pytest.mark.parametrize(
    "text",
    [
        "7",
        "layer",
        "layer - 1",
        "3 - layer",
        "expert * 4096",
        "expert // 4",
        "expert % 4 * 128 + 1",
        "tp * 512",
        "min(171, 800 - fsdp * 171)",
        "max(min(6, 20 - fsdp * 6), 0)",
        "max(min(6, fsdp * 3 - 3), 0)",
        "layer - tp * 3",
        "expert % 4 * 3145728 + tp * 2048",
        "layer * 100 + expert % 4 * 10 + tp",
        "expert // 4 * 8 + min(3, 13 - fsdp * 3)",
    ],
)
def test_an_expression_in_canonical_form_is_found_again(text: str) -> None:
    found = fit("start", column(text), FRAME)
    assert found is not None
    assert str(to_text(found)) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("layer * layer", "start_by_layer[layer]"),
        ("0 - fsdp * fsdp", "start_by_fsdp[fsdp]"),
        ("tp * 100 + fsdp * fsdp", "tp * 100 + start_by_fsdp[fsdp]"),
        ("layer * layer + expert * expert", "start_by_layer[layer] + start_by_expert[expert]"),
        ("expert * min(3, 13 - fsdp * 3)", "expert * min(3, 13 - fsdp * 3)"),
        ("expert % 4 * (fsdp * fsdp + 1)", "expert % 4 * start_step_by_fsdp[fsdp]"),
    ],
)
def test_other_columns_are_tables_and_products(text: str, written: str) -> None:
    found = fit("start", column(text), FRAME)
    assert found is not None
    names, contents = name_tables([found], ())
    arrays = {name: np.array(values, dtype=np.int64) for name, values in contents.items()}
    named = rename_tables(found, names)
    assert to_text(named) == written
    assert np.array_equal(np.asarray(evaluate(named, VALUES, arrays)), column(text))


def test_a_column_that_no_form_gives_is_refused() -> None:
    assert fit("start", column("layer * layer * expert * expert"), FRAME) is None


TERMS = st.sampled_from(
    ["layer", "layer // 2", "layer % 3", "expert", "expert // 5", "expert % 4", "tp", "fsdp"]
)


@given(st.lists(st.tuples(TERMS, st.integers(-50, 50)), max_size=3), st.integers(-50, 50))
@settings(deadline=None)
def test_sums_are_found_without_tables(terms: list[tuple[str, int]], constant: int) -> None:
    by_input = {text.split()[0]: (text, factor) for text, factor in terms}
    text = " + ".join([str(constant), *(f"{one} * ({n})" for one, n in by_input.values())])
    y = column(text)
    found = fit("start", y, FRAME)
    assert found is not None
    assert not tables(found)
    assert np.array_equal(np.broadcast_to(evaluate(found, VALUES, {}), y.shape), y)


@given(st.lists(st.integers(-3, 3), min_size=12, max_size=12), st.integers(0, 3))
@settings(deadline=None)
def test_any_function_of_one_input_is_found(table: list[int], factor: int) -> None:
    y = np.array(table, dtype=np.int64)[EXPERT] + factor * TP
    found = fit("start", y, FRAME)
    assert found is not None
    assert complexity(found)[0] <= 12
    assert np.array_equal(np.broadcast_to(evaluate_draft(found, VALUES), y.shape), y)


def test_tables_join_where_their_known_entries_agree() -> None:
    late = make_frame({"layer": np.arange(3, 7)}, {}, {})
    early = make_frame({"layer": np.arange(5)}, {}, {})
    other = make_frame({"layer": np.arange(5)}, {}, {})
    columns = ([1, 4, 9, 16], [5, 0, 7, 1, 4], [5, 0, 7, 2, 4])
    found = [
        fit("pp", np.array(values, dtype=np.int64), frame)
        for values, frame in zip(columns, (late, early, other), strict=True)
    ]
    names, contents = name_tables([one for one in found if one], ("pp_by_layer",))
    assert contents == {"pp_by_layer2": (5, 0, 7, 1, 4, 9, 16), "pp_by_layer3": (5, 0, 7, 2, 4)}
    assert len(names) == 3

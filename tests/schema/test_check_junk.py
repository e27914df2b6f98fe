"""Whatever a manifest or plan that fits the models says, checking it ends in diagnostics."""

import json
from collections.abc import Iterator
from typing import Any, cast

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.schema import strategies
from tests.schema.small_manifests import RECEIVER, SENDER, Json, changed
from tests.schema.test_check_documents import PLAN
from tranship.schema.check import check_manifest, check_plan
from tranship.schema.diagnostics import known_codes
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest
from tranship.schema.plan import TransferPlan
from tranship.schema.records import Declaration


def leaves(data: object, pointer: str = "") -> Iterator[str]:
    """Pointers to everything in a document but its format."""
    if pointer and pointer != "/format":
        yield pointer
    if isinstance(data, dict):
        for key, value in cast(Json, data).items():
            yield from leaves(value, f"{pointer}/{key}")
    if isinstance(data, list):
        for index, value in enumerate(cast(list[Any], data)):
            yield from leaves(value, f"{pointer}/{index}")


TEXTS = st.sampled_from(
    ["tp", "layer", "rank", "expert", "stage", "(((", "0x1for x", "1 if 2 else 3", "layer // 0",
     "max(1, 2, 3)", "layer.x", "stage[tp]", "stage[-1]", "held[layer - 5]", "-layer", "rank - 9",
     "rank * 4611686018427387903", "layer % 3 * 1099511627776 * 1048576", "min(layer, 0 - 1)",
     "0..3", "3..1", "0..999999", "999999999", "all", "value", "scale", "f8e4m3fn", "f8e8m0fnu",
     "{", "{}", "{layer}", "{tp}", "a{layer}{layer}", "a1{layer}", "layers.{layer}.q.weight",
     "layers.{layer - 1}.qk.weight", "layers.2.qk.weight", "embed.weight", "head.weight",
     "\u00e9\u0660", "lambda", "0..7"]
)  # fmt: skip
NUMBERS = st.sampled_from([-(2**62), -1, 0, 1, 2, 3, 7, 128, 513, 2**20, 2**40, 2**62])
OTHERS = st.sampled_from(
    [None, [], {}, {"tp": 1}, {"layer": "0..1"}, {"tp": "layer"}, [0, 0], [1, 1], ["tp"],
     {"kind": "transfer"}, {"kind": "plain"}, {"kind": "scale", "of": "embed.weight"},
     {"kind": "alias", "of": "layers.{layer}.qk.weight"}]
)  # fmt: skip
JUNK = st.one_of(TEXTS, NUMBERS, OTHERS)


@st.composite
def damaged(draw: st.DrawFn, bases: list[Json]) -> Json:
    base = draw(st.sampled_from(bases))
    for _ in range(draw(st.integers(1, 3))):
        pointer = draw(st.sampled_from(list(leaves(base))))
        base = changed(base, (pointer, draw(JUNK)))
    return base


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged([RECEIVER, SENDER]))
def test_checking_a_damaged_manifest_never_raises(data: Json) -> None:
    try:
        manifest = Manifest.model_validate_json(json.dumps(data))
    except ValidationError:
        return
    found = check_manifest(manifest)
    assert {one.code for one in found} <= set(known_codes())
    assert check_manifest(manifest) == found


@settings(max_examples=100, deadline=None)
@given(damaged([PLAN]))
def test_checking_a_damaged_plan_never_raises(data: Json) -> None:
    try:
        plan = TransferPlan.model_validate_json(json.dumps(data))
    except ValidationError:
        return
    assert {one.code for one in check_plan(plan)} <= set(known_codes())


@settings(max_examples=50, deadline=None)
@given(strategies.manifests())
def test_checking_any_families_never_raises(manifest: Manifest) -> None:
    assert {one.code for one in check_manifest(manifest)} <= set(known_codes())


@settings(max_examples=50, deadline=None)
@given(strategies.declarations())
def test_checking_any_folded_declaration_never_raises(declaration: Declaration) -> None:
    assert {one.code for one in check_manifest(fold(declaration))} <= set(known_codes())

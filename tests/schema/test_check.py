"""Every rule of manifests: a good manifest, one change, and what is then found where."""

import json
import re
from pathlib import Path

import pytest

from tests.schema.small_manifests import (
    GONE,
    QK,
    RECEIVER,
    SENDER,
    Change,
    Json,
    changed,
    found,
    model,
    rows,
)
from tranship.schema.check import check_manifest
from tranship.schema.codec import Source, canonical_bytes
from tranship.schema.diagnostics import known_codes
from tranship.schema.expand import expand
from tranship.schema.fold import fold
from tranship.schema.layouts import PACKED_SCALES

ODD = 2**20
BOTH = {
    "name": "both",
    "dtype": "bf16",
    "shape": [6 * ODD],
    "pieces": [
        {"tensor": "second", "start": [0], "extent": [ODD], "strides": [2]},
        {"tensor": "third", "start": [0], "extent": [ODD], "strides": [3], "offset": 1},
    ],
}
SPREAD = {"name": "b", "dtype": "bf16", "shape": [2, 2], "strides": [3, 1]}
LINE = {"tensor": "line", "start": [0], "extent": [4]}
LINE_TENSOR: Change = ("/tensors/-", {"name": "line", "shape": [4]})
Q_REST = rows("layers.{layer}.q.weight", "tp * 256 + 64", [192, 512], offset=64 * 512)

PACKED: list[Change] = [
    ("/buffers/3/dtype", "f8e8m0fnu"),
    ("/buffers/2/encoding/scale_values", "power_of_two"),
    ("/buffers/3/layout", PACKED_SCALES),
]

CASES: list[tuple[Json, list[Change], set[tuple[str, str]]]] = [
    # Expressions, index sets, names.
    (RECEIVER, [("/buffers/2/shape/0", "384 +")], {("TS130", "/buffers/2/shape/0")}),
    (RECEIVER, [("/buffers/2/name", "a.{layer")], {("TS130", "/buffers/2/name")}),
    (RECEIVER, [("/tensors/2/indices/layer", "2..0")], {("TS131", "/tensors/2/indices/layer")}),
    (RECEIVER, [("/ranks", "3..0")], {("TS131", "/ranks")}),
    (
        RECEIVER,
        [("/buffers/2/pieces/0/start/0", "tq * 256")],
        {("TS132", "/buffers/2/pieces/0/start/0")},
    ),
    (
        RECEIVER,
        [("/buffers/0/pieces/0/extent/0", "hold[tp]")],
        {("TS132", "/buffers/0/pieces/0/extent/0")},
    ),
    (RECEIVER, [("/buffers/2/name", "layers.{tp}.w")], {("TS133", "/buffers/2/name")}),
    (
        RECEIVER,
        [("/buffers/6/pieces/0/at/ep", "tp + expert")],
        {("TS133", "/buffers/6/pieces/0/at/ep")},
    ),
    (SENDER, [("/buffers/2/at/pp", "stage[layer + 1]")], {("TS134", "/buffers/2/at/pp")}),
    (RECEIVER, [("/buffers/5/shape/0", "rank * 2000000000000000000")],
     {("TS134", "/buffers/5/shape/0")}),
    (
        RECEIVER,
        [("/tensors/4/indices", {"layer": "0..999999", "expert": "0..7"})],
        {("TS135", "/tensors/4/indices")},
    ),
    (RECEIVER, [("/axes/-", {"name": "tp", "size": 2, "stride": 2})],
     {("TS136", "/axes/2/name")}),
    (RECEIVER, [("/buffers/4/indices/ep", "0")], {("TS136", "/buffers/4/indices/ep")}),
    (RECEIVER, [("/buffers/6/pieces/0/indices/layer", "0")],
     {("TS136", "/buffers/6/pieces/0/indices/layer")}),
    (RECEIVER, [("/tables/lambda", [1])], {("TS137", "/tables/lambda")}),
    (RECEIVER, [("/axes/-", {"name": "rank", "size": 1, "stride": 1})],
     {("TS137", "/axes/2/name")}),
    (
        RECEIVER,
        [("/buffers/2/pieces/0/tensor", "layers.{layer + 0}.q.weight")],
        {("TS138", "/buffers/2/pieces/0/tensor")},
    ),
    (RECEIVER, [("/tensors/2/name", "layers.q.weight")], {("TS138", "/tensors/2/name")}),
    (SENDER, [("/buffers/3/name", "fc1.{layer}{expert}")], {("TS139", "/buffers/3/name")}),
    (SENDER, [("/buffers/2/name", "layer4{layer}")], {("TS139", "/buffers/2/name")}),
    (SENDER, [("/buffers/2/name", "decoder.{layer - 1}.qk")], {("TS139", "/buffers/2/name")}),
    # Axes, ranks, coordinates.
    (RECEIVER, [("/axes/1/size", 5)], {("TS150", "/axes/1")}),
    (RECEIVER, [("/ranks", "0..4")], {("TS151", "/ranks")}),
    (RECEIVER, [("/buffers/5/at", {"dp": 0})], {("TS152", "/buffers/5/at/dp")}),
    (RECEIVER, [("/buffers/6/pieces/0/at/ep", "expert")],
     {("TS153", "/buffers/6/pieces/0/at/ep")}),
    # Tensors.
    (RECEIVER, [("/tensors/-", {"name": "layers.1.k.weight", "shape": [1]})],
     {("TS154", "/tensors/6/name")}),
    (RECEIVER, [("/tensors/-", {"name": "huge", "shape": [2**40, 2**30]})],
     {("TS155", "/tensors/6/shape")}),
    (RECEIVER, [("/tensors/1/tied_to", "embedding.weight")], {("TS156", "/tensors/1/tied_to")}),
    (RECEIVER, [("/tensors/1/shape", [1000, 256])], {("TS157", "/tensors/1/tied_to")}),
    (RECEIVER, [("/tensors/1/tied_to", "head.weight")], {("TS157", "/tensors/1/tied_to")}),
    (
        RECEIVER,
        [("/buffers/2/pieces/0/tensor", "layers.{layer}.v.weight")],
        {("TS158", "/buffers/2/pieces/0/tensor")},
    ),
    (RECEIVER, [("/tensors/2/indices/layer", "0..1")], {("TS158", "/buffers/2/pieces/0/tensor"),
                                                        ("TS158", "/buffers/3/pieces/0/tensor")}),
    # Dims.
    (RECEIVER, [("/buffers/0/pieces/0/start", [0])], {("TS159", "/buffers/0/pieces/0/start")}),
    (RECEIVER, [("/buffers/5/strides", [8, 1])], {("TS159", "/buffers/5/strides")}),
    (RECEIVER, [("/buffers/0/shape", [512 * 512])], {("TS160", "/buffers/0/pieces/0")}),
    # Memory.
    (RECEIVER, [("/buffers/-", {"name": "rope", "dtype": "f32", "shape": [0]})],
     {("TS161", "/buffers/8/name")}),
    (SENDER, [("/buffers/2/name", "decoder.qk")], {("TS161", "/buffers/2/name")}),
    (RECEIVER, [("/buffers/5/shape/0", "rank - 1")], {("TS162", "/buffers/5/shape")}),
    (RECEIVER, [("/buffers/5/shape", [2**40, 2**40])], {("TS162", "/buffers/5/shape")}),
    (RECEIVER, [("/buffers/5/strides", [0])], {("TS163", "/buffers/5/strides")}),
    (
        RECEIVER,
        [("/buffers/2/pieces/1/offset", 257 * 512)],
        {("TS164", "/buffers/2/pieces/1")},
    ),
    (
        SENDER,
        [LINE_TENSOR, ("/buffers/-", {**SPREAD, "pieces": [{**LINE, "strides": [1]}]})],
        {("TS164", "/buffers/4/pieces/0")},
    ),
    (RECEIVER, [("/buffers/0/pieces/0/start/0", "tp * 513")],
     {("TS165", "/buffers/0/pieces/0")}),
    (
        RECEIVER,
        [("/buffers/2/pieces/1/offset", 255 * 512)],
        {("TS166", "/buffers/2/pieces/1"), ("TS167", "/buffers/2")},
    ),
    (SENDER, [("/buffers/3/pieces/1/offset", 191 * 512)], {("TS166", "/buffers/3/pieces/1")}),
    (RECEIVER, [("/buffers/0/fills", [])], {("TS167", "/buffers/0")}),
    (
        SENDER,
        [("/tensors/-", {"name": "second", "shape": [ODD]}),
         ("/tensors/-", {"name": "third", "shape": [ODD]}), ("/buffers/-", BOTH)],
        {("TS168", "/buffers/4")},
    ),
    # Roles, fills, layouts.
    (RECEIVER, [("/buffers/0/fills/0/value", GONE)], {("TS169", "/buffers/0/fills/0")}),
    (RECEIVER, [("/buffers/0/fills/0/reason", "why")], {("TS169", "/buffers/0/fills/0")}),
    (RECEIVER, [("/buffers/5/role", {"kind": "transfer"})], {("TS170", "/buffers/5")}),
    (
        RECEIVER,
        [("/buffers/5/fills", [{"sizes": [64], "strides": [1], "value": 0}])],
        {("TS171", "/buffers/5/fills")},
    ),
    (RECEIVER, [("/buffers/4/role/inputs/1", "nothing")],
     {("TS183", "/buffers/4/role/inputs/1")}),
    (RECEIVER, [("/buffers/4/role/inputs/1", "layers.{layer}.qk.absorbed")],
     {("TS195", "/buffers/4/role/inputs/1")}),
    (RECEIVER, [("/buffers/4/role/inputs", ["rope"])],
     {("TS196", "/buffers/4/role/inputs")}),
    (RECEIVER, [("/quantization", {"method": "fp8", "unquantized": [{"name": "nobody"}]})],
     {("TS197", "/quantization/unquantized"), ("TS197", "/quantization/unquantized/0/name")}),
    (RECEIVER, [("/buffers/0/at", {"tp": 0})], {("TS184", "/buffers/1/role/of")}),
    (RECEIVER, [("/buffers/1/role/of", "head.weight")], {("TS185", "/buffers/1/role/of")}),
    (RECEIVER, [("/buffers/5/layout", "row_mayor")], {("TS187", "/buffers/5/layout")}),
    # Encodings and scales.
    (RECEIVER, [("/buffers/2/dtype", "bf16")], {("TS172", "/buffers/2/dtype")}),
    (RECEIVER, [("/buffers/3/dtype", "f16")], {("TS173", "/buffers/3/dtype")}),
    (
        RECEIVER,
        [("/buffers/2/encoding/block", [128])],
        {("TS174", f"/buffers/{b}/pieces/{p}/tensor") for b in (2, 3) for p in (0, 1)},
    ),
    (RECEIVER, [("/buffers/2/pieces/0/step", [2, 1])], {("TS175", "/buffers/2/pieces/0/step")}),
    (
        RECEIVER,
        [("/buffers/2/encoding/scale", QK + "_scale")],
        {("TS176", "/buffers/2/encoding/scale"), ("TS177", "/buffers/3/encoding/of")},
    ),
    (
        RECEIVER,
        [("/buffers/3/encoding/of", "layers.{layer}.qk.absorbed")],
        {("TS177", "/buffers/2/encoding/scale"), ("TS177", "/buffers/3/encoding/of")},
    ),
    (RECEIVER, [("/buffers/3/pieces/0/origin", [64, 0])], {("TS178", "/buffers/2/pieces/0")}),
    (
        RECEIVER,
        [
            ("/buffers/2/pieces/1", GONE),
            ("/buffers/2/fills", [{"offset": 131072, "sizes": [65536], "strides": [1],
                                   "reason": "padding"}]),
        ],
        {("TS179", "/buffers/3/pieces/1"), ("TS189", "/tensors/3/name")},
    ),
    (RECEIVER, [("/buffers/3/dtype", "f8e8m0fnu")],
     {("TS180", "/buffers/2/encoding/scale_values")}),
    (RECEIVER, [("/buffers/3/layout", PACKED_SCALES)], {("TS198", "/buffers/3/dtype")}),
    (RECEIVER, PACKED, set()),
    (
        RECEIVER,
        [*PACKED, ("/buffers/3/pieces/0/offset", 4), ("/buffers/3/pieces/1/offset", 0)],
        {("TS198", "/buffers/3/pieces/0"), ("TS198", "/buffers/3/pieces/1")},
    ),
    (RECEIVER, [("/buffers/3/pieces/0/part", "value")], {("TS181", "/buffers/3/pieces/0/part")}),
    (RECEIVER, [("/buffers/0/pieces/0/origin", [0, 0])],
     {("TS182", "/buffers/0/pieces/0/origin")}),
    (
        RECEIVER,
        [("/buffers/2/pieces/0/origin", [2**41, 0]), ("/buffers/3/pieces/0/origin", [2**41, 0])],
        {("TS182", "/buffers/2/pieces/0/origin"), ("TS182", "/buffers/3/pieces/0/origin"),
         ("TS165", "/buffers/3/pieces/0"), ("TS178", "/buffers/2/pieces/0")},
    ),
    (
        RECEIVER,
        [("/buffers/2/pieces/0/extent/0", 64), ("/buffers/2/pieces/-", Q_REST)],
        {("TS186", "/buffers/2/pieces/2")},
    ),
    # What is forgotten.
    (SENDER, [("/buffers/2/pieces/0/indices/group", "0..2")], {("TS188", "/tensors/2/name")}),
    (SENDER, [("/buffers/1/pieces/0/extent/0", 400), ("/buffers/0/pieces/0/extent/0", 400)],
     {("TS188", "/tensors/0/name")}),
    (RECEIVER, [("/tensors/-", {"name": "bias", "shape": [4]})], {("TS189", "/tensors/6/name")}),
]  # fmt: skip


@pytest.mark.parametrize(("base", "changes", "expected"), CASES)
def test_one_change_is_found(base: Json, changes: list[Change], expected: set[object]) -> None:
    assert set(found(changed(base, *changes))) == expected


@pytest.mark.parametrize("base", [RECEIVER, SENDER])
@pytest.mark.parametrize("ranks", [None, "0", "1..2"])
def test_good_manifests_have_no_findings(base: Json, ranks: str | None) -> None:
    manifest = model(changed(base, ("/ranks", ranks)))
    assert check_manifest(manifest) == ()
    assert check_manifest(fold(expand(manifest))) == ()


def test_memory_that_depends_on_every_rank_and_layer_is_refused() -> None:
    shape = ["rank + layer"]
    fill = {"sizes": shape, "strides": [1], "reason": "padding"}
    data = {
        **{"format": "tranship.manifest/1", "side": "sender", "world_size": 2**20, "tensors": []},
        "buffers": [{"name": "b", "dtype": "bf16", "shape": shape, "fills": [fill]}],
    }
    few = changed(data, ("/buffers/0/indices", {"layer": "0"}))
    many = changed(data, ("/buffers/0/indices", {"layer": "0..15"}), ("/buffers/0/name", "{layer}"))
    assert (found(few), found(many)) == ([], [("TS135", "/buffers/0")])


def test_every_code_of_the_rules_has_a_case_and_a_page() -> None:
    rules = Path(__file__).parents[2] / "schema" / "rules"
    documents = {"TS190", "TS191", "TS192", "TS193", "TS194"}  # test_check_documents.py
    used = {c for path in rules.glob("*.py") for c in re.findall(r"TS\d{3}", path.read_text())}
    cases = {code for _, _, expected in CASES for code, _ in expected}
    assert used == cases | documents
    assert used <= set(known_codes())


def test_findings_are_placed_in_the_text() -> None:
    data = canonical_bytes(changed(RECEIVER, ("/buffers/5/layout", "row_mayor"))).decode()
    (diagnostic,) = check_manifest(model(json.loads(data)), Source("engine.json", data))
    assert diagnostic.at is not None
    line = data.splitlines()[(diagnostic.at.line or 0) - 1]
    assert diagnostic.at.file == "engine.json"
    assert line[(diagnostic.at.column or 0) - 1 :].startswith('"row_mayor"')
    assert diagnostic.suggestion == "row_major"


def test_a_hundred_findings_are_reported_and_the_rest_counted() -> None:
    again = [("/tensors/-", {"name": "embed.weight", "shape": [1000, 512]})] * 105
    diagnostics = check_manifest(model(changed(RECEIVER, *again)))
    assert [d.code for d in diagnostics] == ["TS154"] * 100 + ["TS118"]
    assert "5 more" in diagnostics[-1].message

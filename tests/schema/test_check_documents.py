"""The rules of policies, placements, transfer files and plans."""

import json

import pytest

from tests.schema.small_manifests import Change, Json, changed
from tranship.schema.check import check_placement, check_plan, check_policy, check_transfer
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.placement import Placement
from tranship.schema.plan import TransferPlan
from tranship.schema.policy import Policy
from tranship.schema.transfer import Transfer

CAST = {
    "edge": "cast",
    "tensors": "*",
    "sender_dtype": "f32",
    "receiver_dtype": "bf16",
    "reason": "the engine computes in bf16",
}
POLICY: Json = {
    "format": "tranship.policy/1",
    "allow": [
        CAST,
        {**CAST, "edge": "dequantize", "sender_dtype": "f8e4m3fn"},
        {**CAST, "edge": "requantize", "sender_dtype": "f8e4m3fn", "receiver_dtype": "f8e5m2"},
    ],
    "unused": [{"tensors": "mtp.*", "reason": "no draft layers"}],
}
PLACEMENT: Json = {
    "format": "tranship.placement/1",
    "sender": {"host": "rank // 8", "device": "rank % 8"},
    "receiver": {"host": "rank // 8 + 4", "device": "rank % 8"},
}
TRANSFER: Json = {
    "format": "tranship.transfer/1",
    "sender": "trainer.manifest.json",
    "receiver": "../engines/engine.manifest.json",
    "policy": "policy.toml",
}
DIGEST = "sha256:" + "0" * 64
HALF: Json = {
    "buffer": "b.{layer}",
    "dtype": "bf16",
    "at": {"tp": "layer % 2"},
    "start": ["tp * 4", 0],
    "extent": [4, 8],
    "offset": 0,
    "strides": [8, 1],
}
PLAN: Json = {
    "format": "tranship.plan/1",
    "options": DIGEST,
    "sender": {
        "manifest": DIGEST,
        "world_size": 2,
        "axes": [{"name": "tp", "size": 2, "stride": 1}],
        "tables": {"chosen": [3, 4]},
    },
    "receiver": {
        "manifest": DIGEST,
        "world_size": 2,
        "axes": [{"name": "tp", "size": 2, "stride": 1}],
    },
    "seats": {
        "sender": {"host": 0, "device": "rank"},
        "receiver": {"host": 1, "device": "rank"},
    },
    "schedule": {"rounds": [0, 1]},
    "staging": {
        "budget": 4096,
        "slots": [{"sender": {"offset": 0, "size": 2048}, "receiver": {"offset": 0, "size": 2048}}],
    },
    "rounds": [{"slot": 0}, {"slot": 0, "after": [0]}],
    "edges": [
        {
            "op": "copy",
            "tensor": "w.{layer}",
            "source": "v.{layer}",
            "indices": {"layer": "0..1"},
            "shape": [8, 8],
            "sender": {**HALF, "offset": "chosen[layer]", "indices": {"part": "0..1"}},
            "receiver": {
                **HALF,
                "block": [4, "all"],
                "scale": {
                    "buffer": "s.{layer}",
                    "dtype": "f32",
                    "start": ["tp", 0],
                    "extent": [1, 1],
                    "offset": 0,
                    "strides": [1, 1],
                },
            },
            "window": {"start": [0, 0], "extent": ["rank + 4", 8]},
            "turn": "tp",
            "round": "rounds[layer]",
        }
    ],
    "fills": [
        {
            "buffer": "b.{layer}",
            "dtype": "bf16",
            "indices": {"layer": "0..1"},
            "offset": "tp",
            "sizes": [1],
            "strides": [1],
            "value": 0,
        }
    ],
    "derived": [
        {
            "recipe": "absorb",
            "buffer": "d.{layer}",
            "indices": {"layer": "0..1"},
            "inputs": ["b.{layer}"],
            "after": 1,
        }
    ],
    "unused": [{"tensor": "mtp.{layer}.w", "reason": "no draft layers"}],
}

BASES: dict[str, Json] = {
    "policy": POLICY,
    "placement": PLACEMENT,
    "transfer": TRANSFER,
    "plan": PLAN,
}


def check(name: str, data: Json) -> tuple[Diagnostic, ...]:
    text = json.dumps(data)
    match name:
        case "policy":
            return check_policy(Policy.model_validate_json(text))
        case "placement":
            return check_placement(Placement.model_validate_json(text))
        case "transfer":
            return check_transfer(Transfer.model_validate_json(text))
        case _:
            return check_plan(TransferPlan.model_validate_json(text))


@pytest.mark.parametrize("name", BASES)
def test_good_documents_have_no_findings(name: str) -> None:
    assert check(name, BASES[name]) == ()


EDGE = "/edges/0"
CASES: list[tuple[str, list[Change], set[tuple[str, str]]]] = [
    ("policy", [("/allow/0/receiver_dtype", "f64")], {("TS190", "/allow/0")}),
    ("policy", [("/allow/1/sender_dtype", "f32")], {("TS190", "/allow/1")}),
    ("policy", [("/allow/2/receiver_dtype", "bf16")], {("TS190", "/allow/2")}),
    ("policy", [("/allow/-", {**CAST, "reason": "once more"})], {("TS191", "/allow/3")}),
    ("policy", [("/unused/-", {"tensors": "mtp.*", "reason": "so"})], {("TS191", "/unused/1")}),
    ("placement", [("/sender/host", "rank //")], {("TS130", "/sender/host")}),
    ("placement", [("/receiver/device", "tp")], {("TS132", "/receiver/device")}),
    ("transfer", [("/sender", "/data/trainer.json")], {("TS192", "/sender")}),
    ("transfer", [("/sender", "C:/trainer.json")], {("TS192", "/sender")}),
    ("transfer", [("/policy", "strict\\policy.toml")], {("TS192", "/policy")}),
    ("transfer", [("/placement", "hosts.yaml")], {("TS192", "/placement")}),
    ("transfer", [("/receiver", "trainer.manifest.json")], {("TS193", "/receiver")}),
    ("plan", [("/rounds/1/slot", 1)], {("TS194", "/rounds/1/slot")}),
    ("plan", [("/rounds/1/after/0", 1)], {("TS194", "/rounds/1/after/0")}),
    ("plan", [("/derived/0/after", -1)], {("TS194", "/derived/0/after")}),
    ("plan", [("/sender/axes/0/size", 3)], {("TS150", "/sender/axes/0")}),
    ("plan", [("/schedule/min", [0])], {("TS137", "/schedule/min")}),
    ("plan", [("/seats/sender/host", "tp")], {("TS132", "/seats/sender/host")}),
    ("plan", [(f"{EDGE}/tensor", "w.{layer // 1}")], {("TS138", f"{EDGE}/tensor")}),
    ("plan", [(f"{EDGE}/source", "v.{part}")], {("TS132", f"{EDGE}/source")}),
    ("plan", [(f"{EDGE}/source", "v1{layer}")], {("TS139", f"{EDGE}/source")}),
    ("plan", [(f"{EDGE}/round", "chosen[layer]")], {("TS132", f"{EDGE}/round")}),
    ("plan", [(f"{EDGE}/turn", "part")], {("TS132", f"{EDGE}/turn")}),
    ("plan", [(f"{EDGE}/round", "rounds[layer + 1]")], {("TS134", f"{EDGE}/round")}),
    ("plan", [(f"{EDGE}/indices/layer", "2..1")], {("TS131", f"{EDGE}/indices/layer")}),
    ("plan", [(f"{EDGE}/sender/indices/tp", "0")], {("TS136", f"{EDGE}/sender/indices/tp")}),
    ("plan", [(f"{EDGE}/sender/at/pp", 0)], {("TS152", f"{EDGE}/sender/at/pp")}),
    ("plan", [(f"{EDGE}/sender/at/tp", "rank")], {("TS133", f"{EDGE}/sender/at/tp")}),
    ("plan", [(f"{EDGE}/sender/start", [0])], {("TS159", f"{EDGE}/sender/start")}),
    ("plan", [(f"{EDGE}/receiver/block", [4])], {("TS159", f"{EDGE}/receiver/block")}),
    ("plan", [(f"{EDGE}/receiver/offset", "chosen[layer]")],
     {("TS132", f"{EDGE}/receiver/offset")}),
    ("plan", [(f"{EDGE}/receiver/scale/strides", [1])],
     {("TS159", f"{EDGE}/receiver/scale/strides")}),
    ("plan", [(f"{EDGE}/receiver/scale/buffer", "s.{tp}")],
     {("TS133", f"{EDGE}/receiver/scale/buffer")}),
    ("plan", [(f"{EDGE}/window/extent", [4])], {("TS159", f"{EDGE}/window/extent")}),
    ("plan", [(f"{EDGE}/window/start/0", "part")], {("TS132", f"{EDGE}/window/start/0")}),
    ("plan", [("/fills/0/offset", "tq")], {("TS132", "/fills/0/offset")}),
    ("plan", [("/fills/0/strides", [1, 1])], {("TS159", "/fills/0/strides")}),
    ("plan", [("/derived/0/inputs/0", "b.{")], {("TS130", "/derived/0/inputs/0")}),
    ("plan", [("/derived/0/at", {"pp": 0})], {("TS152", "/derived/0/at/pp")}),
    ("plan", [("/unused/0/tensor", "mtp.{layer + 1}.w")], {("TS138", "/unused/0/tensor")}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "expected"), CASES)
def test_one_change_is_found(name: str, changes: list[Change], expected: set[object]) -> None:
    found = check(name, changed(BASES[name], *changes))
    assert {(d.code, d.at.pointer) for d in found if d.at is not None} == expected

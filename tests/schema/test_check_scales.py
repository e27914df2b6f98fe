"""Codes, scales and blocks against brute force: on every rank, block by block."""

import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schema.brute_force import (
    AT,
    AXES,
    OWN_AT,
    TABLES,
    Env,
    Json,
    instances,
    name,
    parts,
    values,
)
from tranship.schema.check import check_manifest
from tranship.schema.manifest import Manifest

Shard = tuple[list[int | str], list[int | str]]
"""Start and extent."""

BLOCK = [2, 3]
SCALE_BOXES: list[Shard] = [
    ([0, 0], [3, 2]), (["tp", 0], [2, 2]), (["layer", 0], [1, 2]), ([0, "pp"], [3, 1]),
    (["0 - 1", 0], [3, 2]), ([0, 0], ["3 - rank", 2]),
]  # fmt: skip
CODE_BOXES: list[Shard] = [
    ([0, 0], [5, 4]), (["tp * 2", 0], [2, 4]), (["layer * 2", 0], [2, 4]), ([0, "pp * 3"], [5, 1]),
    (["tp", 0], [3, 2]), ([0, 0], ["5 - rank", 4]),
]  # fmt: skip
ORIGINS: list[list[int | str]] = [[0, 0], [0, 0], ["tp", 0], [1, 0], [0, "0 - 1"]]


def tensor_piece(draw: st.DrawFn, boxes: list[Any], part: str) -> Json:
    start, extent = draw(st.sampled_from(boxes))
    return {
        "tensor": draw(st.sampled_from(["q.{layer}", "q.{extra}", "q.{extra}"])),
        "indices": {"extra": draw(st.sampled_from(["0..1", "1", "0"]))},
        "at": draw(OWN_AT),
        "part": part,
        "start": start,
        "extent": extent,
        "origin": draw(st.sampled_from(ORIGINS)),
    }


@st.composite
def scaled_manifests(draw: st.DrawFn) -> Json:
    """One family of codes and one of scales, whose pieces are drawn apart."""
    common: Json = {"indices": {"layer": "0..2"}, "at": draw(AT), "shape": [8, 8]}
    codes: Json = {
        **common,
        "name": "codes.{layer}",
        "dtype": "f8e4m3fn",
        "encoding": {"kind": "scaled", "block": BLOCK, "scale": "scales.{layer}"},
        "pieces": [tensor_piece(draw, CODE_BOXES, "value") for _ in range(draw(st.integers(1, 2)))],
    }
    scales: Json = {
        **common,
        "name": "scales.{layer}",
        "dtype": "f32",
        "encoding": {"kind": "scale", "of": "codes.{layer}"},
        "pieces": [
            {**piece, **dict(zip(("start", "extent"), draw(st.sampled_from(SCALE_BOXES)),
                                 strict=True)), "part": "scale"}
            for piece in codes["pieces"]
        ],
    }  # fmt: skip
    scales["pieces"] += [
        tensor_piece(draw, SCALE_BOXES, "scale") for _ in range(draw(st.integers(0, 2)))
    ]
    scales["pieces"] = scales["pieces"][draw(st.integers(0, 1)) :]
    return {
        "format": "tranship.manifest/1",
        "side": "receiver",
        "world_size": draw(st.sampled_from([3, 4])),
        "axes": AXES,
        "tables": TABLES,
        "tensors": [{"name": "q.{layer}", "indices": {"layer": "0..2"}, "shape": [5, 4]}],
        "buffers": [codes, scales],
    }


Held = tuple[str, list[int], list[range], int]
"""A tensor, the origin of its blocks, the blocks in each dim, and the number of the piece."""


def blocks(env: Env, buffer: Json) -> list[Held]:
    """What each piece of a buffer holds on one rank, in blocks."""
    held: list[Held] = []
    for part, inner in parts(buffer, env):
        start, extent = values(part["start"], inner), values(part["extent"], inner)
        origin = values(part["origin"], inner)
        if min(extent) < 1:
            continue
        ends = zip(start, extent, origin, BLOCK, strict=True)
        spans = [
            range(s, s + e)
            if part["part"] == "scale"
            else range((s - o) // b, (s + e - 1 - o) // b + 1)
            for s, e, o, b in ends
        ]
        number = next(n for n, piece in enumerate(buffer["pieces"]) if piece is part)
        held.append((name(part["tensor"], inner), origin, spans, number))
    return held


def within(inner: range, outer: range) -> bool:
    return inner.start >= outer.start and inner.stop <= outer.stop


def scale_faults(manifest: Json) -> set[tuple[str, str]]:
    codes, scales = manifest["buffers"]
    faults = set[tuple[str, str]]()
    for number, _, env in instances(manifest):
        if number:
            continue
        held, scaled = blocks(env, codes), blocks(env, scales)
        for tensor, origin, spans, piece in held:
            fits = [
                all(map(within, spans, others))
                for name, its, others, _ in scaled
                if (name, its) == (tensor, origin)
            ]
            if not any(fits):
                faults.add(("TS178", f"/buffers/0/pieces/{piece}"))
        for tensor, _, _, piece in scaled:
            if tensor not in [name for name, *_ in held]:
                faults.add(("TS179", f"/buffers/1/pieces/{piece}"))
        for a, b in itertools.combinations(held, 2):
            meet = all(set(x) & set(y) for x, y in zip(a[2], b[2], strict=True))
            if a[:2] == b[:2] and meet:
                faults.add(("TS186", f"/buffers/0/pieces/{max(a[3], b[3])}"))
    return faults


@settings(max_examples=100, deadline=None)
@given(scaled_manifests())
def test_scales_agree_with_brute_force(data: Json) -> None:
    diagnostics = check_manifest(Manifest.model_validate_json(json.dumps(data)))
    pairs = {(d.code, d.at.pointer) for d in diagnostics if d.at is not None}
    codes = {"TS178", "TS179", "TS186"}
    assert {pair for pair in pairs if pair[0] in codes} == scale_faults(data)

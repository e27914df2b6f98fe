"""Manifests against brute force: every element of every buffer and tensor, one by one."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tranship.schema import indexset
from tranship.schema.check import check_manifest
from tranship.schema.manifest import Manifest

Json = dict[str, Any]
Env = dict[str, Any]

TABLES = {"odd": [1, 0, 1, 0]}
AXES = [{"name": "tp", "size": 2, "stride": 1}, {"name": "pp", "size": 2, "stride": 2}]


def value(text: int | str, env: Env) -> int:
    """Evaluate by Python itself, whose operators the grammar shares."""
    return int(eval(str(text), {"__builtins__": {}, "min": min, "max": max}, env))


def name(template: str, env: Env) -> str:
    parts = template.replace("{", "}").split("}")
    return "".join(str(value(p, env)) if n % 2 else p for n, p in enumerate(parts))


def points(indices: Json) -> Iterator[Env]:
    sets = [indexset.parse(text) for text in indices.values()]
    for values in itertools.product(*sets):
        yield dict(zip(indices, values, strict=True))


def ranks(manifest: Json) -> Iterator[Env]:
    for rank in range(manifest["world_size"]):
        here = {a["name"]: rank // a["stride"] % a["size"] for a in manifest["axes"]}
        yield {"rank": rank, **here, **manifest["tables"]}


def present(at: Json, env: Env) -> bool:
    return all(env[axis] == value(text, env) for axis, text in at.items())


def values(entries: list[Any], env: Env) -> list[int]:
    return [value(entry, env) for entry in entries]


def addresses(offset: int, sizes: list[int], strides: list[int]) -> Iterator[int]:
    for index in itertools.product(*map(range, sizes)):
        yield offset + sum(i * s for i, s in zip(index, strides, strict=True))


def nests(sizes: list[int], strides: list[int]) -> bool:
    span = 0
    for stride, size in sorted((t, s) for s, t in zip(sizes, strides, strict=True) if s > 1):
        if stride <= span:
            return False
        span += stride * (size - 1)
    return True


def contiguous(shape: list[int]) -> list[int]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * max(size, 1))
    return strides[: len(shape)]


def parts(buffer: Json, env: Env) -> Iterator[tuple[Json, Env]]:
    for part in buffer.get("pieces", []) + buffer.get("fills", []):
        for point in points(part.get("indices", {})):
            inner = {**env, **point}
            if present(part.get("at", {}), inner):
                yield part, inner


def instances(manifest: Json) -> Iterator[tuple[int, Json, Env]]:
    for number, buffer in enumerate(manifest["buffers"]):
        for env in ranks(manifest):
            for point in points(buffer.get("indices", {})):
                if present(buffer.get("at", {}), {**env, **point}):
                    yield number, buffer, {**env, **point}


Found = set[tuple[str, int]]


def memory_faults(manifest: Json) -> Found:
    """What is wrong with each buffer family, in the order in which the rules look."""
    stages = [defaultdict[int, set[str]](set) for _ in range(3)]
    for number, buffer, env in instances(manifest):
        for stage, codes in enumerate(buffer_faults(manifest, buffer, env)):
            stages[stage][number] |= codes
    faults: Found = set()
    for number in range(len(manifest["buffers"])):
        first = next((s[number] for s in stages if s[number]), set[str]())
        faults |= {(code, number) for code in first}
    return faults


def buffer_faults(manifest: Json, buffer: Json, env: Env) -> list[set[str]]:
    shape = values(buffer["shape"], env)
    strides = values(buffer["strides"], env) if "strides" in buffer else contiguous(shape)
    possible, held = set[str](), Counter[int]()
    own = list(addresses(0, shape, strides)) if min(shape) >= 0 else []
    if min(shape) < 0 or min(strides) < 0:
        possible.add("TS162")
    elif not nests(shape, strides):
        possible.add("TS163")
    count = 0
    for part, inner in parts(buffer, env):
        count += 1
        sizes = values(part["extent" if "tensor" in part else "sizes"], inner)
        steps = values(part["strides"], inner) if "strides" in part else strides
        offset = value(part.get("offset", 0), inner)
        if min(sizes) < 0 or min(steps) < 0:
            possible.add("TS162")
            continue
        if not nests(sizes, steps):
            possible.add("TS163")
        taken = Counter(addresses(offset, sizes, steps))
        if taken and min(*shape, *strides) >= 0:
            if min(taken) < 0 or max(taken) > max(own, default=-1):
                possible.add("TS164")
        held += taken
    empty = {"TS170"} if own and not count else set[str]()
    tiled = set[str]()
    if any(address not in own for address in held):
        tiled.add("TS164")
    if any(n > 1 for n in held.values()):
        tiled.add("TS166")
    if manifest["side"] == "receiver" and any(address not in held for address in own):
        tiled.add("TS167")
    return [possible, empty, tiled]


def elements(piece: Json, env: Env) -> Iterator[tuple[int, ...]]:
    start, extent = values(piece["start"], env), values(piece["extent"], env)
    step = piece.get("step", [1] * len(start))
    for index in itertools.product(*map(range, extent)):
        yield tuple(s + k * i for s, k, i in zip(start, step, index, strict=True))


def tensor_faults(manifest: Json) -> Found:
    """Boxes that leave their tensor (by buffer), and tensors not held or used (by family)."""
    families = {
        name(tensor["name"], point): (number, tensor)
        for number, tensor in enumerate(manifest["tensors"])
        for point in points(tensor.get("indices", {}))
    }
    tied = {
        full: name(tensor["tied_to"], point)
        for tensor in manifest["tensors"]
        for point in points(tensor.get("indices", {}))
        if "tied_to" in tensor
        for full in [name(tensor["name"], point)]
    }
    faults: Found = set()
    held = {full: set[tuple[int, ...]]() for full in families}
    used = set[str]()
    for number, buffer, env in instances(manifest):
        for piece, inner in parts(buffer, env):
            if "tensor" not in piece:
                continue
            full = name(piece["tensor"], inner)
            shape = families[full][1]["shape"]
            root = tied.get(full, full)
            used.add(root)
            for element in elements(piece, inner):
                held[root].add(element)
                if not all(0 <= x < n for x, n in zip(element, shape, strict=True)):
                    faults.add(("TS165", number))
    for full, (number, tensor) in families.items():
        if manifest["side"] == "receiver":
            if tied.get(full, full) not in used:
                faults.add(("TS189", number))
        elif not set(itertools.product(*map(range, tensor["shape"]))) <= held[tied.get(full, full)]:
            if full in tied:
                continue  # reported where it is held
            faults.add(("TS188", number))
    return faults


SMALL = st.integers(0, 4)
ENTRY = st.one_of(
    SMALL,
    st.sampled_from(
        ["tp", "2 * tp", "2 - tp", "layer", "layer * 2", "odd[layer]", "pp + tp", "rank % 2 * 2",
         "min(layer, 1) * 2", "4 * tp", "max(0, 2 - rank)", "tp - 1"]
    ),
)  # fmt: skip
AT = st.one_of(
    st.just({}), st.sampled_from([{"pp": "layer % 2"}, {"tp": "odd[layer]"}, {"rank": "layer"}])
)
OWN_AT = st.one_of(AT, st.sampled_from([{"tp": "extra"}, {"pp": "extra"}]))


SHARDS = [([0, 0], [4, 3]), (["tp * 2", 0], [2, 3]), ([0, "pp"], [4, "1 + pp"]),
          (["rank", 0], [1, 3]), (["layer % 2 * 2", 0], [2, 3])]  # fmt: skip
ROWS, COLUMNS = "4 - layer // 2 * 2", "2 + layer // 2"
BOXES: dict[str, list[tuple[list[int | str], list[int | str]]]] = {
    "w": SHARDS,
    "t": SHARDS,
    "v": [([0, 0], [ROWS, COLUMNS]), (["tp", 0], [f"{ROWS} - tp", COLUMNS])],
}


@st.composite
def piece(draw: st.DrawFn) -> Json:
    tensor = draw(st.sampled_from(["w.{layer}", "v.{layer}.{extra}", "t.{layer}"]))
    start = [draw(ENTRY), draw(st.one_of(st.just(0), SMALL))]
    extent = [draw(ENTRY), draw(st.integers(1, 3))]
    if draw(st.booleans()):
        start, extent = draw(st.sampled_from(BOXES[tensor[0]]))
    part: Json = {
        "tensor": tensor,
        "indices": {"extra": draw(st.sampled_from(["0..1", "1"]))},
        "at": draw(OWN_AT),
        "start": start,
        "extent": extent,
        "offset": draw(st.one_of(ENTRY, st.sampled_from(["extra * 4", "tp * 4 + extra"]))),
    }
    if draw(st.booleans()):
        part["strides"] = [draw(st.sampled_from([1, 2, 3, 4, 6])), draw(st.sampled_from([1, 2]))]
    if draw(st.integers(0, 3)) == 0:
        part["step"] = [draw(st.integers(1, 3)), 1]
    return part


@st.composite
def fill(draw: st.DrawFn) -> Json:
    return {
        "at": draw(AT),
        "offset": draw(ENTRY),
        "sizes": [draw(ENTRY)],
        "strides": [draw(st.sampled_from([1, 1, 2, 3]))],
        "value": 0,
    }


@st.composite
def buffer(draw: st.DrawFn, number: int) -> Json:
    made: Json = {
        "name": f"b{'abc'[number]}.{{layer}}",
        "indices": {"layer": "0..2"},
        "at": draw(AT),
        "dtype": "bf16",
        "shape": [draw(ENTRY), draw(st.integers(1, 3))],
        "pieces": draw(st.lists(piece(), max_size=3)),
        "fills": draw(st.lists(fill(), max_size=2)),
    }
    if draw(st.integers(0, 3)) == 0:
        made["strides"] = [draw(st.sampled_from([1, 2, 3, 4])), draw(st.sampled_from([1, 2, 3]))]
    return made


@st.composite
def manifests(draw: st.DrawFn) -> Json:
    buffers = [draw(buffer(number)) for number in range(draw(st.integers(1, 2)))]
    tensors = [
        {"name": "w.{layer}", "indices": {"layer": "0..2"}, "shape": [4, 3]},
        {"name": "v.{layer}.{extra}", "indices": {"layer": "0..1", "extra": "0..1"},
         "shape": [4, 2]},
        {"name": "v.2.{extra}", "indices": {"extra": "0..1"}, "shape": [2, 3]},
        {"name": "t.{layer}", "indices": {"layer": "0..2"}, "shape": [4, 3],
         "tied_to": "w.{layer}"},
    ]  # fmt: skip
    return {
        "format": "tranship.manifest/1",
        "side": draw(st.sampled_from(["sender", "receiver"])),
        "world_size": draw(st.sampled_from([3, 4])),
        "axes": AXES,
        "tables": TABLES,
        "tensors": tensors,
        "buffers": buffers,
    }


def found(data: Json) -> Found:
    """What the rules find, by the number of the buffer or tensor family."""
    diagnostics = check_manifest(Manifest.model_validate_json(json.dumps(data)))
    return {(d.code, int(d.at.pointer.split("/")[2])) for d in diagnostics if d.at is not None}


@settings(max_examples=150, deadline=None)
@given(manifests())
def test_geometry_agrees_with_brute_force(data: Json) -> None:
    pairs, expected = found(data), memory_faults(data) | tensor_faults(data)
    if any(code == "TS165" for code, _ in expected):  # what a wrong box holds is not defined
        pairs, expected = ({p for p in some if p[0] != "TS188"} for some in (pairs, expected))
    assert pairs == expected


@st.composite
def senders(draw: st.DrawFn) -> Json:
    """Senders of which every other one holds its tensors completely."""
    data = draw(manifests())
    number = draw(st.integers(2, 5))
    parts = [draw(piece().filter(lambda one: one["tensor"] != "v.{layer}.{extra}"))]
    for _ in range(number):
        start, extent = draw(st.sampled_from(SHARDS))
        step = draw(st.sampled_from([None, None, [2, 1]]))
        if step:
            start, extent = [draw(st.sampled_from([0, 1, "tp", "odd[layer]"])), 0], [2, 3]
        tensor = draw(st.sampled_from(["w.{layer}", "w.{layer}", "t.{layer}"]))
        made = {"tensor": tensor, "at": draw(AT), "start": start, "extent": extent}
        parts.append({**made, "step": step} if step else made)
    tensors = [one for one in data["tensors"] if one["name"][0] in "wt"]
    buffers = [{**data["buffers"][0], "at": draw(AT), "pieces": parts, "fills": []}]
    return {**data, "side": "sender", "tensors": tensors, "buffers": buffers}


@settings(max_examples=100, deadline=None)
@given(senders())
def test_completeness_agrees_with_brute_force(data: Json) -> None:
    expected = tensor_faults(data)
    if not any(code == "TS165" for code, _ in expected):
        assert found(data) & {("TS188", 0)} == expected


BLOCK = [2, 3]
SCALE_BOXES: list[tuple[list[int | str], list[int | str]]] = [
    ([0, 0], [3, 2]), (["tp", 0], [2, 2]), (["layer", 0], [1, 2]), ([0, "pp"], [3, 1]),
    (["0 - 1", 0], [3, 2]), ([0, 0], ["3 - rank", 2]),
]  # fmt: skip
CODE_BOXES: list[tuple[list[int | str], list[int | str]]] = [
    ([0, 0], [5, 4]), (["tp * 2", 0], [2, 4]), (["layer * 2", 0], [2, 4]), ([0, "pp * 3"], [5, 1]),
    (["tp", 0], [3, 2]), ([0, 0], ["5 - rank", 4]),
]  # fmt: skip
ORIGINS: list[list[int | str]] = [[0, 0], [0, 0], ["tp", 0], [1, 0], [0, "0 - 1"]]


def tensor_piece(draw: st.DrawFn, boxes: list[Any], part: str) -> Json:
    start, extent = draw(st.sampled_from(boxes))
    return {
        "tensor": draw(st.sampled_from(["q.{layer}", "q.{extra}", "q.{extra}"])),
        "indices": {"extra": draw(st.sampled_from(["0..1", "1", "0"]))},
        "at": draw(st.one_of(st.just({}), OWN_AT)),
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

"""Manifests against brute force: every element of every buffer and tensor, one by one."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schema.brute_force import (
    AT,
    AXES,
    OWN_AT,
    TABLES,
    Env,
    Found,
    Json,
    addresses,
    contiguous,
    found,
    instances,
    name,
    nests,
    parts,
    points,
    value,
    values,
)


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
            if 0 not in tensor["shape"] and tied.get(full, full) not in used:
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
Shard = tuple[list[int | str], list[int | str]]
SHARDS: list[Shard] = [([0, 0], [4, 3]), (["tp * 2", 0], [2, 3]), ([0, "pp"], [4, "1 + pp"]),
          (["rank", 0], [1, 3]), (["layer % 2 * 2", 0], [2, 3])]  # fmt: skip
ROWS, COLUMNS = "4 - layer // 2 * 2", "2 + layer // 2"
BOXES: dict[str, list[Shard]] = {
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

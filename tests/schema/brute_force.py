"""What a manifest stands for, one member and one rank at a time, evaluated by Python itself."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tranship.schema import indexset
from tranship.schema.check import check_manifest
from tranship.schema.manifest import Manifest

Json = dict[str, Any]
Env = dict[str, Any]

TABLES = {"odd": [1, 0, 1, 0]}
AXES = [{"name": "tp", "size": 2, "stride": 1}, {"name": "pp", "size": 2, "stride": 2}]


NO_AT: Json = {}
AT = st.one_of(
    st.just(NO_AT),
    st.sampled_from([{"pp": "layer % 2"}, {"tp": "odd[layer]"}, {"rank": "layer"}]),
)
OWN_AT = st.one_of(AT, st.sampled_from([{"tp": "extra"}, {"pp": "extra"}]))
Found = set[tuple[str, int]]
"""Codes with the number of the buffer or tensor family."""


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


def found(data: Json) -> Found:
    """What the rules find."""
    diagnostics = check_manifest(Manifest.model_validate_json(json.dumps(data)))
    return {(d.code, int(d.at.pointer.split("/")[2])) for d in diagnostics if d.at is not None}

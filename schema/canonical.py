"""JSON values to bytes, in one layout, and what keeps a value from being written or read.

The same rules hold in both directions: `parse_json` refuses what `canonical_bytes` refuses.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from tranship.schema.positions import MAX_DEPTH, join_pointer

INT_LIMIT = 2**63
"""Integers in a document lie from -INT_LIMIT to INT_LIMIT - 1: signed 64 bits."""

Json = None | bool | int | float | str | list["Json"] | tuple["Json", ...] | dict[str, "Json"]
Path = tuple[str | int, ...]


def canonical_bytes(data: object) -> bytes:
    r"""Write JSON values as UTF-8 text in the one layout that files have.

    A top-level object has one key per line; in it, a list of objects has one element per line, and
    an object of lists or objects has one entry per line. All else is on one line. Keys stay in the
    order given. `parse_json` reads back an equal value (tuples come back as lists).

    >>> print(canonical_bytes({"format": "x/1", "pairs": [{"a": 1}, {"a": 2}]}).decode(), end="")
    {
      "format": "x/1",
      "pairs": [
        {"a": 1},
        {"a": 2}
      ]
    }

    Raises:
        ValueError: `data` holds what JSON has not, or what `parse_json` refuses.
    """
    for unfit in find_unfit(data):
        raise ValueError(f"{unfit.message}, at {join_pointer(unfit.path) or 'the top'}")
    return f"{_layout(cast(Json, data))}\n".encode()


def digest(data: bytes) -> str:
    """Return the SHA-256 digest of `data` as "sha256:" and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layout(data: Json) -> str:
    if not isinstance(data, dict) or not data:
        return _compact(data)
    return _spread("{", [f"{_compact(key)}: {_entry(value)}" for key, value in data.items()], "}")


def _entry(value: Json) -> str:
    if isinstance(value, dict) and value and _all_containers(value.values()):
        lines = [f"{_compact(key)}: {_compact(inner)}" for key, inner in value.items()]
        return _spread("{", lines, "}", indent="  ")
    if isinstance(value, list | tuple) and value and all(isinstance(e, dict) for e in value):
        return _spread("[", [_compact(element) for element in value], "]", indent="  ")
    return _compact(value)


def _all_containers(values: Iterable[Json]) -> bool:
    return all(isinstance(value, dict | list | tuple) for value in values)


def _spread(opening: str, lines: list[str], closing: str, indent: str = "") -> str:
    body = f",\n{indent}  ".join(lines)
    return f"{opening}\n{indent}  {body}\n{indent}{closing}"


def _compact(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Unfit:
    """A value that no document may hold: where it is, and the code and text that say why."""

    path: Path
    code: str
    message: str


def find_unfit(value: object, path: Path = ()) -> Iterator[Unfit]:
    """Find all that keeps `value` from being written as JSON and read back as it was."""
    match value:
        case None | bool():
            return
        case str():
            if not _is_unicode(value):
                yield Unfit(path, "TS108", "the text holds half of a surrogate pair")
        case int():
            if not -INT_LIMIT <= value < INT_LIMIT:
                yield Unfit(path, "TS104", "an integer must fit in signed 64 bits")
        case float():
            if not math.isfinite(value):
                yield Unfit(path, "TS104", "a number must be finite and no larger than a double")
        case dict() | list() | tuple():
            yield from _find_inside(cast(_Container, value), path)
        case _:
            yield Unfit(path, "TS112", f"JSON has no value of type {type(value).__name__}")


_Container = dict[object, object] | list[object] | tuple[object, ...]


def _find_inside(container: _Container, path: Path) -> Iterator[Unfit]:
    if len(path) >= MAX_DEPTH:
        yield Unfit(path, "TS105", f"more than {MAX_DEPTH} levels lie within one another")
    elif isinstance(container, dict):
        for key, value in container.items():
            yield from _find_in_member(key, value, path)
    else:
        for index, value in enumerate(container):
            yield from find_unfit(value, (*path, index))


def _find_in_member(key: object, value: object, path: Path) -> Iterator[Unfit]:
    if not isinstance(key, str):
        yield Unfit(path, "TS112", f"the key {key!r} is not text")
        return
    if not _is_unicode(key):
        yield Unfit((*path, key), "TS108", "the key holds half of a surrogate pair")
    yield from find_unfit(value, (*path, key))


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

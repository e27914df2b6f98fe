"""Declarations and edges as one rank sees them: its coordinates put into every expression."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from tranship.schema import indexset
from tranship.schema.expression import (
    Constant,
    IntArray,
    evaluate,
    parse,
    substitute,
    to_text,
    variables,
)
from tranship.schema.manifest import BufferFamily, Fill, IntExpression, Manifest, Piece
from tranship.schema.mesh import coordinates, table_arrays
from tranship.schema.moves import Environment, grid_size, index_grid
from tranship.schema.plan import Half, PlanSide
from tranship.schema.template import parse_template

M = TypeVar("M", bound=BaseModel)

Indices = dict[str, str]
At = dict[str, IntExpression]
Tables = Mapping[str, tuple[int, ...]]
Entries = tuple[IntExpression, ...]

_NAMES = frozenset({"buffer", "tensor"})
_ENTRIES = frozenset({"start", "extent", "offset", "strides", "origin", "sizes", "shape"})


@dataclass(frozen=True)
class Rank:
    """A rank, its coordinate on every axis (and `rank` itself), and its side's tables."""

    number: int
    place: Mapping[str, int]
    tables: Tables


def rank_of(side: PlanSide | Manifest, number: int) -> Rank:
    """Place a rank on the mesh of its side."""
    found = coordinates(side.axes, np.array([number], dtype=np.int64))
    return Rank(number, {name: int(values[0]) for name, values in found.items()}, side.tables)


def half_at(half: Half, rank: Rank) -> Half:
    """Put a rank's coordinates into one end of an edge."""
    seen = at_rank(half, rank)
    return seen.model_copy(update={"scale": half.scale and at_rank(half.scale, rank)})


def manifest_at(manifest: Manifest, number: int) -> Manifest:
    """Keep the buffers, pieces and fills that one rank has, with its coordinates put in."""
    rank = rank_of(manifest, number)
    found = (_family_at(family, rank) for family in manifest.buffers)
    return manifest.model_copy(update={"buffers": tuple(one for one in found if one)})


def _family_at(family: BufferFamily, rank: Rank) -> BufferFamily | None:
    narrow = narrowed(family.at, family.indices, rank)
    if narrow is None:
        return None
    parts = {
        "name": _name(family.name, rank),
        "indices": narrow.indices,
        "at": narrow.at,
        "pieces": tuple(_parts_at(family.pieces, family, rank)),
        "fills": tuple(_parts_at(family.fills, family, rank)),
    }
    return at_rank(family, rank).model_copy(update=parts)


P = TypeVar("P", Piece, Fill)


def _parts_at(parts: Iterable[P], family: BufferFamily, rank: Rank) -> Iterator[P]:
    """Keep the pieces or fills that exist for some of the buffers on a rank."""
    for part in parts:
        narrow = narrowed(part.at, part.indices, rank, family)
        if narrow is not None:
            update = {"indices": narrow.indices, "at": narrow.at}
            yield at_rank(part, rank).model_copy(update=update)


@dataclass(frozen=True)
class Narrow:
    """What indices run over on one rank, and the conditions `at` that no set of them expresses."""

    indices: Indices
    at: At


def narrowed(
    at: At, indices: Indices, rank: Rank, family: BufferFamily | None = None
) -> Narrow | None:
    """Put a rank into the conditions `at`; None if it has none of what they select.

    A condition on one index makes the set of that index smaller. One on several, or on an index of
    the `family` that this is a part of, stays a condition.
    """
    outer = family.indices if family else {}
    everything = [*(family.at.items() if family else ()), *at.items()]
    grid = index_grid({**outer, **indices})
    if not _holds(everything, grid, grid_size({**outer, **indices}), rank).any():
        return None
    kept = {axis: value for axis, value in at.items() if not _narrows(value, indices)}
    result = dict[str, str]()
    for name, members in indices.items():
        conditions = [(a, v) for a, v in at.items() if a not in kept and name in _reads(v)]
        own = index_grid({name: members})
        result[name] = members_text(own[name][_holds(conditions, own, len(own[name]), rank)])
    return Narrow(result, kept)


def _narrows(value: IntExpression, indices: Indices) -> bool:
    read = _reads(value)
    return not read or (len(read) == 1 and read <= indices.keys())


def _holds(
    at: Iterable[tuple[str, IntExpression]], grid: Environment, count: int, rank: Rank
) -> NDArray[np.bool_]:
    """Whether a rank has the coordinates `at`, for every row of the grid."""
    holds, lookup = np.ones(count, dtype=np.bool_), table_arrays(rank.tables)
    for axis, value in at:
        holds &= np.asarray(evaluate(parse(value), grid, lookup)) == rank.place[axis]
    return holds


def _reads(entry: IntExpression) -> frozenset[str]:
    return variables(parse(entry))


def where_text(at: At) -> str:
    """Write conditions: `where tp = expert // 2`; nothing if there are none."""
    return f"where {', '.join(f'{axis} = {value}' for axis, value in at.items())}" if at else ""


def members_text(values: IntArray) -> str:
    """Write the different values in an array as an index set."""
    return indexset.to_text(np.unique(values).tolist())


def at_rank(model: M, rank: Rank) -> M:
    """Put a rank's coordinates into the names and expressions of a piece, fill, step or half."""
    changes: dict[str, object] = {}
    for field, value in model:
        if field in _NAMES:
            changes[field] = _name(value, rank)
        elif field in _ENTRIES and isinstance(value, tuple):
            changes[field] = tuple(_entry(entry, rank) for entry in cast(Entries, value))
        elif field in _ENTRIES and value is not None:
            changes[field] = _entry(value, rank)
    return model.model_copy(update=changes)


def _entry(entry: IntExpression, rank: Rank) -> IntExpression:
    expression = substitute(parse(entry), _constants(rank))
    if variables(expression):
        return to_text(expression)
    return int(evaluate(expression, {}, table_arrays(rank.tables)))


def _name(name: str, rank: Rank) -> str:
    """Put a rank's coordinates into a name template; a hole that is then a number becomes text."""
    template = parse_template(name)
    text = template.texts[0]
    for hole, literal in zip(template.holes, template.texts[1:], strict=True):
        value = to_text(substitute(hole, _constants(rank)))
        text += f"{value}{literal}" if isinstance(value, int) else f"{{{value}}}{literal}"
    return text


def _constants(rank: Rank) -> dict[str, Constant]:
    return {name: Constant(value) for name, value in rank.place.items()}

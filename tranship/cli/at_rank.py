"""Declarations and edges as one rank sees them: its coordinates put into every expression."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
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
from tranship.schema.moves import grid_size, index_grid
from tranship.schema.plan import Half, PlanSide
from tranship.schema.template import parse_template

M = TypeVar("M", bound=BaseModel)

Indices = dict[str, str]
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
    indices = indices_at(family.at, family.indices, rank)
    if indices is None:
        return None
    parts = {
        "name": _name(family.name, rank),
        "indices": indices,
        "at": {},
        "pieces": tuple(_parts_at(family.pieces, indices, rank)),
        "fills": tuple(_parts_at(family.fills, indices, rank)),
    }
    return at_rank(family, rank).model_copy(update=parts)


P = TypeVar("P", Piece, Fill)


def _parts_at(parts: Iterable[P], outer: Indices, rank: Rank) -> Iterator[P]:
    """Keep the pieces or fills that exist for some of the buffers `outer`.

    A condition that depends on which of the buffers it is stays where it is.
    """
    for part in parts:
        if indices_at(part.at, outer | part.indices, rank) is None:
            continue
        kept = {axis: at for axis, at in part.at.items() if not outer.keys().isdisjoint(_reads(at))}
        own = {axis: at for axis, at in part.at.items() if axis not in kept}
        indices = indices_at(own, part.indices, rank)
        yield at_rank(part, rank).model_copy(update={"indices": indices, "at": kept})


def _reads(entry: IntExpression) -> frozenset[str]:
    return variables(parse(entry))


def indices_at(at: Mapping[str, IntExpression], indices: Indices, rank: Rank) -> Indices | None:
    """Return what each index runs over on a rank; None if nothing is there."""
    grid, lookup = index_grid(indices), table_arrays(rank.tables)
    holds = np.ones(grid_size(indices), dtype=np.bool_)
    for axis, value in at.items():
        holds &= np.asarray(evaluate(parse(value), grid, lookup)) == rank.place[axis]
    if not holds.any():
        return None
    return {name: members_text(values[holds]) for name, values in grid.items()}


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

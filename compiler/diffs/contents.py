"""What pieces and fills put into buffers, as arrays that are compared as multisets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tranship.compiler.diffs.extras import as_text, extras
from tranship.compiler.diffs.names import name_keys
from tranship.compiler.diffs.rows import row_codes
from tranship.schema.expression import IntArray
from tranship.schema.manifest import BufferFamily, Fill, Piece
from tranship.schema.members import Rows

Mask = NDArray[np.bool_]
Kind = tuple[object, ...]
"""What the pieces of one group have in common besides their numbers."""

_PIECE = frozenset(
    {"tensor", "part", "indices", "at", "start", "extent", "step", "offset", "strides", "origin"}
)
_FILL = frozenset({"indices", "at", "offset", "sizes", "strides", "value", "reason"})


@dataclass(frozen=True)
class Members:
    """A family, the rows of it that are compared, and the strides of its buffers `[n, d]`."""

    family: BufferFamily
    rows: Rows
    strides: IntArray


def members(family: BufferFamily, rows: Rows) -> Members:
    """Evaluate the strides of a family's buffers."""
    strides = family.strides
    return Members(
        family,
        rows,
        _contiguous(rows.array(family.shape)) if strides is None else rows.array(strides),
    )


def _contiguous(shape: IntArray) -> IntArray:
    sizes = np.maximum(shape, 1)
    ones = np.ones((len(shape), 1), dtype=np.int64)
    inner = np.cumprod(sizes[:, :0:-1], axis=1)
    return np.concatenate([ones, inner], axis=1)[:, ::-1][:, : shape.shape[1]]


Contents = Mapping[Kind, IntArray]
"""By kind, one row for every piece: the position of its buffer first, then all its numbers."""


def pieces_of(own: Members) -> Contents:
    """List the pieces of all buffers."""
    parts: dict[Kind, list[IntArray]] = {}
    for piece in own.family.pieces:
        for kind, part in _piece_rows(piece, own):
            parts.setdefault(kind, []).append(part)
    return {kind: np.concatenate(found) for kind, found in parts.items()}


def _piece_rows(piece: Piece, own: Members) -> list[tuple[Kind, IntArray]]:
    owner, rows = _occupied(piece, piece.extent, own.rows)
    dims = len(piece.start)
    strides = (
        own.strides[owner][:, own.strides.shape[1] - dims :]
        if piece.strides is None
        else rows.array(piece.strides)
    )
    step = piece.step or (1,) * dims
    origin = piece.origin or (0,) * dims
    entries = [*piece.start, *piece.extent, *step, piece.offset, *origin]
    matrix = np.concatenate([owner[:, np.newaxis], rows.array(entries), strides], axis=1)
    other = as_text(extras(piece, _PIECE))
    return [
        (
            (keys.texts, piece.part, dims, other),
            np.concatenate([matrix[keys.rows], keys.numbers], axis=1),
        )
        for keys in name_keys(piece.tensor, rows.values, rows.count, rows.lookup)
    ]


def _occupied(
    part: Piece | Fill, sizes: Sequence[int | str], buffers: Rows
) -> tuple[IntArray, Rows]:
    owner, rows = buffers.join(part.indices, part.at)
    some = np.flatnonzero((rows.array(sizes) > 0).all(axis=1))
    return owner[some], rows.take(some)


def fills_of(own: Members) -> Contents:
    """List the fills of all buffers."""
    parts: dict[Kind, list[IntArray]] = {}
    for fill in own.family.fills:
        owner, rows = _occupied(fill, fill.sizes, own.rows)
        entries = [fill.offset, *fill.sizes, *fill.strides]
        matrix = np.concatenate([owner[:, np.newaxis], rows.array(entries)], axis=1)
        kind = (fill.value, fill.reason or "", len(fill.sizes), as_text(extras(fill, _FILL)))
        parts.setdefault(kind, []).append(matrix)
    return {kind: np.concatenate(found) for kind, found in parts.items()}


def differing(old: Members, new: Members, contents: Callable[[Members], Contents]) -> Mask:
    """Find the rows whose buffers do not have the same contents."""
    first, second = contents(old), contents(new)
    result = np.zeros(old.rows.count, dtype=np.bool_)
    for kind in first.keys() | second.keys():
        before, after = first.get(kind), second.get(kind)
        if before is None or after is None:
            alone = after if before is None else before
            assert alone is not None, "a kind is one side's at least"
            result[alone[:, 0]] = True
            continue
        both = np.concatenate([before, after])
        result[both[_unpaired(row_codes(both), len(before)), 0]] = True
    return result


def _unpaired(codes: IntArray, first: int) -> IntArray:
    """Positions of the codes that do not occur equally often before and from `first` on."""
    _, place = np.unique(codes, return_inverse=True)
    place = place.reshape(-1)
    sizes = [np.bincount(part, minlength=len(codes)) for part in (place[:first], place[first:])]
    return np.flatnonzero((sizes[0] != sizes[1])[place])

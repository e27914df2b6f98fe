"""Fold the pieces and fills of a group of buffers into families."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema.folding.cover import Cover, Domain, Field, Rows, Split, cover, uniform_field
from tranship.schema.expression import IntArray
from tranship.schema.folding.fit import combine, fit, make_frame
from tranship.schema.folding.groups import (
    FillLikeness,
    PieceLikeness,
    fill_likeness,
    piece_likeness,
)
from tranship.schema.mesh import RANK
from tranship.schema.folding.names import free_name, index_names, is_variable, split_name
from tranship.schema.records import BufferRecord, FillRecord, Ints, PieceRecord

ORDINAL = "group"
"""Index of the pieces of one tensor, or of the fills, in one buffer, in the order of records."""


@dataclass(frozen=True)
class PieceDraft:
    """A family of pieces: what its pieces share, and the cover of the rest."""

    likeness: PieceLikeness
    cover: Cover
    first: PieceRecord


@dataclass(frozen=True)
class FillDraft:
    """A family of fills: what its fills share, and the cover of the rest."""

    likeness: FillLikeness
    cover: Cover
    first: FillRecord


@dataclass(frozen=True)
class Contents:
    """The families of pieces and of fills in a family of buffers."""

    pieces: tuple[PieceDraft, ...]
    fills: tuple[FillDraft, ...]


def fold_contents(
    domain: Domain,
    buffers: Sequence[BufferRecord],
    shapes: Mapping[str, Ints],
    taken: Collection[str],
) -> Contents | Split:
    """Fold what is in `buffers`, or say how to split the buffers.

    Args:
        domain: The buffers' indices and ranks.
        buffers: The buffers, one per place of `domain`.
        shapes: The tensors' shapes by name.
        taken: Names that no index may have.
    """
    pieces: list[PieceDraft] = []
    for likeness, (places, records) in _alike_pieces(buffers, shapes).items():
        rows = _piece_rows(domain, buffers, places, records, taken)
        found = fold_rows(domain, rows)
        if isinstance(found, Split):
            return found
        pieces += [PieceDraft(likeness, one, records[first]) for one, first in found]
    fills: list[FillDraft] = []
    for likeness, (places, records) in _alike_fills(buffers).items():
        found = fold_rows(domain, _fill_rows(domain, places, records, taken))
        if isinstance(found, Split):
            return found
        fills += [FillDraft(likeness, one, records[first]) for one, first in found]
    pieces.sort(key=lambda draft: (draft.first.offset, draft.first))
    fills.sort(key=lambda draft: (draft.first.offset, draft.first))
    return Contents(tuple(pieces), tuple(fills))


def fold_rows(domain: Domain, rows: Rows) -> list[tuple[Cover, int]] | Split:
    """Cover rows by as many families as it takes.

    Returns:
        Each cover with the position of its first row; or, where only that helps, a split by an
        index of the domain.
    """
    found: list[tuple[Cover, int]] = []
    waiting = [np.arange(len(rows.places))]
    while waiting:
        chosen = waiting.pop(0)
        part = rows.take(chosen)
        result = cover(domain, part)
        if isinstance(result, Cover):
            found.append((result, int(chosen[0])))
        elif result.name in domain.indices:
            return result
        else:
            values = {**domain.axis_values(part.places), **part.own}[result.name]
            waiting = [chosen[positions] for positions in result.parts(values)] + waiting
    return found


def _alike_pieces(
    buffers: Sequence[BufferRecord], shapes: Mapping[str, Ints]
) -> dict[PieceLikeness, tuple[list[int], list[PieceRecord]]]:
    groups: dict[PieceLikeness, tuple[list[int], list[PieceRecord]]] = {}
    for place, buffer in enumerate(buffers):
        for piece in buffer.pieces:
            places, records = groups.setdefault(piece_likeness(piece, shapes), ([], []))
            places.append(place)
            records.append(piece)
    return groups


def _alike_fills(
    buffers: Sequence[BufferRecord],
) -> dict[FillLikeness, tuple[list[int], list[FillRecord]]]:
    groups: dict[FillLikeness, tuple[list[int], list[FillRecord]]] = {}
    for place, buffer in enumerate(buffers):
        for fill in buffer.fills:
            places, records = groups.setdefault(fill_likeness(fill), ([], []))
            places.append(place)
            records.append(fill)
    return groups


def _piece_rows(
    domain: Domain,
    buffers: Sequence[BufferRecord],
    places: list[int],
    records: list[PieceRecord],
    taken: Collection[str],
) -> Rows:
    """Lay the pieces of one likeness out as rows; fields at their defaults are left out."""
    where = np.array(places, dtype=np.int64)
    names = index_names(split_name(records[0].tensor).texts, {*taken, *domain.indices})
    numbers = int_table([split_name(record.tensor).numbers for record in records])
    fields = [
        Field("numbers", numbers, names),
        uniform_field("start", int_table([record.start for record in records])),
        uniform_field("extent", int_table([record.extent for record in records])),
        uniform_field("offset", int_table([(record.offset,) for record in records])),
    ]
    dims = len(records[0].start)
    if any(
        record.strides != buffers[place].strides[-dims:] and dims
        for place, record in zip(places, records, strict=True)
    ):
        fields.append(uniform_field("strides", int_table([r.strides for r in records])))
    if any(any(record.origin) for record in records):
        fields.append(uniform_field("origin", int_table([r.origin for r in records])))
    own = _own_indices(domain, where, dict(zip(names, numbers.T, strict=True)))
    own |= _ordinals(domain, where, list(numbers.T), {*taken, *domain.indices, *own})
    return Rows(where, own, tuple(fields), vanishing="extent")


def _fill_rows(
    domain: Domain, places: list[int], records: list[FillRecord], taken: Collection[str]
) -> Rows:
    where = np.array(places, dtype=np.int64)
    fields = (
        uniform_field("offset", int_table([(record.offset,) for record in records])),
        uniform_field("sizes", int_table([record.sizes for record in records])),
        uniform_field("strides", int_table([record.strides for record in records])),
    )
    own = _ordinals(domain, where, [], {*taken, *domain.indices})
    return Rows(where, own, fields, vanishing="sizes")


def int_table(rows: Sequence[Ints]) -> IntArray:
    """Make an int64 array [rows, entries], also of rows without entries."""
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(rows[0]))


def _own_indices(
    domain: Domain, places: IntArray, numbers: Mapping[str, IntArray]
) -> dict[str, IntArray]:
    """Choose the numbers that are indices of the pieces: those that the buffer does not give."""
    given = {name: values[places] for name, values in domain.indices.items()}
    axes = {n: v for n, v in domain.axis_values(places).items() if is_variable(n)}
    by_index = make_frame(given, {}, {})
    by_place = make_frame(given, axes, domain.sizes)
    own: dict[str, IntArray] = {}
    for name, values in numbers.items():
        repeats = any(np.array_equal(values, other) for other in own.values())
        if repeats or fit(name, values, by_index) is not None:
            continue
        if _is_function(values, [axes[RANK]]) or fit(name, values, by_place) is None:
            own[name] = values
    return own


def _is_function(values: IntArray, inputs: list[IntArray]) -> bool:
    count = len(values)
    return combine(inputs, count).max() == combine([*inputs, values], count).max()


def _ordinals(
    domain: Domain, places: IntArray, numbers: list[IntArray], taken: Collection[str]
) -> dict[str, IntArray]:
    """Number the pieces of one tensor in one buffer, where there are several."""
    same = combine([places, *numbers], len(places))
    order = np.argsort(same, kind="stable")
    starts = np.flatnonzero(np.diff(same[order], prepend=-1))
    ordinals = np.empty_like(places)
    ordinals[order] = np.arange(len(places)) - np.repeat(starts, np.bincount(same))
    return {free_name(ORDINAL, taken): ordinals} if ordinals.any() else {}

"""Fold the pieces and fills of a group of buffers into families."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.folding.cover import cover
from tranship.schema.folding.groups import (
    FillLikeness,
    PieceLikeness,
    fill_likeness,
    piece_likeness,
)
from tranship.schema.folding.names import free_name, index_names, split_name
from tranship.schema.folding.rows import (
    NUMBERS,
    Cover,
    Domain,
    Field,
    Rows,
    Split,
    combine,
    int_table,
    uniform_field,
)
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
    piece_kinds = _alike(
        buffers, lambda buffer: buffer.pieces, lambda one: piece_likeness(one, shapes)
    )
    for likeness, (places, records) in piece_kinds.items():
        rows = _piece_rows(domain, buffers, places, records, taken)
        found = fold_rows(domain, rows)
        if isinstance(found, Split):
            return found
        pieces += [PieceDraft(likeness, one, records[first]) for one, first in found]
    fills: list[FillDraft] = []
    fill_kinds = _alike(buffers, lambda buffer: buffer.fills, fill_likeness)
    for likeness, (places, records) in fill_kinds.items():
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


Likeness = TypeVar("Likeness", PieceLikeness, FillLikeness)
Record = TypeVar("Record", PieceRecord, FillRecord)


def _alike(
    buffers: Sequence[BufferRecord],
    parts: Callable[[BufferRecord], tuple[Record, ...]],
    likeness: Callable[[Record], Likeness],
) -> dict[Likeness, tuple[list[int], list[Record]]]:
    """Gather the parts of all buffers by likeness, each with the position of its buffer."""
    groups: dict[Likeness, tuple[list[int], list[Record]]] = {}
    for place, buffer in enumerate(buffers):
        for record in parts(buffer):
            places, records = groups.setdefault(likeness(record), ([], []))
            places.append(place)
            records.append(record)
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
    numbers = int_table([split_name(record.tensor).numbers for record in records])
    names = index_names(split_name(records[0].tensor).texts, taken)
    labels, own = _tensor_indices(domain, where, names, list(numbers.T), taken)
    fields = [
        Field(NUMBERS, numbers, labels),
        uniform_field("start", [record.start for record in records]),
        uniform_field("extent", [record.extent for record in records]),
        uniform_field("offset", [(record.offset,) for record in records]),
    ]
    dims = len(records[0].start)
    if any(
        record.strides != buffers[place].strides[-dims:] and dims
        for place, record in zip(places, records, strict=True)
    ):
        fields.append(uniform_field("strides", [record.strides for record in records]))
    if any(any(record.origin) for record in records):
        fields.append(uniform_field("origin", [record.origin for record in records]))
    ordinal = free_name(ORDINAL, {*taken, *domain.indices, *own})
    own[ordinal] = _ordinals(where, list(numbers.T))
    return Rows(where, own, tuple(fields), ordinal, vanishing="extent")


def _fill_rows(
    domain: Domain, places: list[int], records: list[FillRecord], taken: Collection[str]
) -> Rows:
    where = np.array(places, dtype=np.int64)
    fields = (
        uniform_field("offset", [(record.offset,) for record in records]),
        uniform_field("sizes", [record.sizes for record in records]),
        uniform_field("strides", [record.strides for record in records]),
    )
    ordinal = free_name(ORDINAL, {*taken, *domain.indices})
    own = {ordinal: _ordinals(where, [])}
    return Rows(where, own, fields, ordinal, vanishing="sizes")


def _tensor_indices(
    domain: Domain,
    places: IntArray,
    names: tuple[str, ...],
    numbers: list[IntArray],
    taken: Collection[str],
) -> tuple[tuple[str, ...], dict[str, IntArray]]:
    """Choose an index for each number of a tensor's name: the buffer's if it is that, or an own.

    Returns:
        The names of the indices, and the values of the own ones.
    """
    given = {name: values[places] for name, values in domain.indices.items()}
    chosen: list[str] = []
    own: dict[str, IntArray] = {}
    for name, values in zip(names, numbers, strict=True):
        equal = [n for n in sorted(given, key=lambda n: n != name) if n not in chosen]
        same = next((n for n in equal if np.array_equal(given[n], values)), None)
        if same is None:
            same = free_name(name, {*taken, *given, *own})
            own[same] = values
        chosen.append(same)
    return tuple(chosen), own


def _ordinals(places: IntArray, numbers: list[IntArray]) -> IntArray:
    """Number the pieces of one tensor in one buffer, [rows]."""
    same = combine([places, *numbers], len(places))
    order = np.argsort(same, kind="stable")
    starts = np.flatnonzero(np.diff(same[order], prepend=-1))
    ordinals = np.empty_like(places)
    ordinals[order] = np.arange(len(places)) - np.repeat(starts, np.bincount(same))
    return ordinals

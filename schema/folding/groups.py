"""Group buffers that one family may cover, and find the indices that tell them apart."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.folding.names import free_name, index_names, split_name
from tranship.schema.folding.rows import combine
from tranship.schema.manifest import Part
from tranship.schema.records import BufferRecord, FillRecord, Ints, PieceRecord

Texts = tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Buffers alike in all but numbers, and the index values of each, [buffers] per index.

    `texts` are those of the buffer's name and of the names it refers to (`references`).
    """

    texts: tuple[Texts, ...]
    records: tuple[BufferRecord, ...]
    indices: dict[str, IntArray]

    def take(self, chosen: IntArray) -> "Group":
        """Keep the buffers at these positions."""
        positions: list[int] = chosen.tolist()
        records = tuple(self.records[position] for position in positions)
        indices = {name: values[chosen] for name, values in self.indices.items()}
        return Group(self.texts, records, indices)


def references(record: BufferRecord) -> tuple[str, ...]:
    """List the buffer's name and the names of other buffers in it; a name it lacks is empty."""
    encoding, role = record.encoding, record.role
    return (record.name, encoding.scale, encoding.of, role.of, *role.inputs)


def group_buffers(
    records: Iterable[BufferRecord], shapes: Mapping[str, Ints], taken: Collection[str]
) -> Iterator[Group]:
    """Group buffers by everything that a family says once for all of its members.

    Args:
        records: Sorted buffers.
        shapes: The tensors' shapes by name.
        taken: Names that no index may have.
    """
    alike: defaultdict[tuple[object, ...], list[BufferRecord]] = defaultdict(list)
    for record in records:
        alike[_likeness(record)].append(record)
    for members in alike.values():
        texts = tuple(split_name(name).texts for name in references(members[0]))
        for group in _with_indices(texts, members, taken):
            yield from _by_contents(group, shapes)


def _likeness(record: BufferRecord) -> tuple[object, ...]:
    role, encoding = record.role, record.encoding
    return (
        *(split_name(name).texts for name in references(record)),
        (record.dtype, record.kind, record.layout, len(record.shape)),
        (role.kind, role.recipe, role.reason),
        (encoding.kind, encoding.block, encoding.scale_values),
    )


def _with_indices(
    texts: tuple[Texts, ...], records: list[BufferRecord], taken: Collection[str]
) -> Iterator[Group]:
    """Give the buffers indices; those that have logical ones are a group, and the others."""
    logical = _logical_indices(records, len(texts[0]) - 1, taken)
    for chosen in (True, False):
        members = [n for n, found in enumerate(logical) if (found is not None) == chosen]
        found = [found for found in logical if found is not None] if chosen else []
        if members:
            indices = {
                name: np.array([values[name] for values in found], dtype=np.int64)
                for name in (found[0] if found else ())
            }
            kept = tuple(records[n] for n in members)
            yield Group(texts, kept, _with_own_numbers(texts[0], kept, indices, taken))


def _logical_indices(
    records: list[BufferRecord], most: int, taken: Collection[str]
) -> list[dict[str, int] | None]:
    """Return the logical index values of each buffer, of the first `most` indices.

    A buffer without pieces has those of its namesakes on other ranks, if they agree.
    """
    shared = [_shared_numbers(record, taken) for record in records]
    known = [numbers for numbers in shared if numbers is not None]
    common = [n for n in (known[0] if known else ()) if all(n in numbers for numbers in known)]
    chosen = [
        None if numbers is None else {name: numbers[name] for name in common[:most]}
        for numbers in shared
    ]
    namesakes: defaultdict[str, list[dict[str, int]]] = defaultdict(list)
    for record, values in zip(records, chosen, strict=True):
        if values is not None and values not in namesakes[record.name]:
            namesakes[record.name].append(values)
    return [
        namesakes[record.name][0] if values is None and len(namesakes[record.name]) == 1 else values
        for record, values in zip(records, chosen, strict=True)
    ]


def _shared_numbers(record: BufferRecord, taken: Collection[str]) -> dict[str, int] | None:
    """Return the numbers that the names of all tensors in the buffer share, by index name."""
    shared: dict[str, int] | None = None
    for tensor in dict.fromkeys(piece.tensor for piece in record.pieces):
        name = split_name(tensor)
        numbers = dict(zip(index_names(name.texts, taken), name.numbers, strict=True))
        previous = numbers if shared is None else shared
        shared = {name: n for name, n in previous.items() if numbers.get(name) == n}
    return shared


def _with_own_numbers(
    texts: Texts,
    records: Sequence[BufferRecord],
    indices: dict[str, IntArray],
    taken: Collection[str],
) -> dict[str, IntArray]:
    """Add those numbers of the buffers' own names that the indices so far do not determine."""
    numbers = np.array([split_name(record.name).numbers for record in records], dtype=np.int64)
    found = dict(indices)
    for name, values in zip(index_names(texts, taken), numbers.T, strict=True):
        members = combine([*found.values()], len(records))
        if combine([members, values], len(records)).max() > members.max():
            found[free_name(name, {*taken, *found})] = values
    return found


def _by_contents(group: Group, shapes: Mapping[str, Ints]) -> Iterator[Group]:
    """Part the members (all buffers of the same index values) by what their pieces hold."""
    member = combine([*group.indices.values()], len(group.records)).tolist()
    contents: defaultdict[int, set[tuple[object, ...]]] = defaultdict(set)
    for number, record in zip(member, group.records, strict=True):
        contents[number].update(piece_likeness(piece, shapes) for piece in record.pieces)
        contents[number].update(fill_likeness(fill) for fill in record.fills)
    parts: defaultdict[frozenset[tuple[object, ...]], list[int]] = defaultdict(list)
    for position, number in enumerate(member):
        parts[frozenset(contents[number])].append(position)
    for positions in parts.values():
        yield group.take(np.array(positions, dtype=np.int64))


class PieceLikeness(NamedTuple):
    """What the pieces of one family have in common."""

    texts: Texts
    shape: Ints | None
    part: Part
    step: Ints


class FillLikeness(NamedTuple):
    """What the fills of one family have in common."""

    dims: int
    value: int
    reason: str


def piece_likeness(piece: PieceRecord, shapes: Mapping[str, Ints]) -> PieceLikeness:
    """Return what the family of `piece` has in common, given the tensors' shapes."""
    texts = split_name(piece.tensor).texts
    return PieceLikeness(texts, shapes.get(piece.tensor), piece.part, piece.step)


def fill_likeness(fill: FillRecord) -> FillLikeness:
    """Return what the family of `fill` has in common."""
    return FillLikeness(len(fill.sizes), fill.value, fill.reason)

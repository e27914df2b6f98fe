"""Group buffers that one family may cover, and find the indices that tell them apart."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.fit import combine
from tranship.schema.names import free_name, index_names, split_name
from tranship.schema.records import BufferRecord, Ints

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
        records = tuple(self.records[position] for position in chosen.tolist())
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
    """Choose indices: logical ones for buffers with pieces, and for their namesakes without."""
    logical = [_logical_indices(record, taken) for record in records]
    known = [found for found in logical if found is not None]
    shared = [n for n in (known[0] if known else ()) if all(n in found for found in known)]
    names = shared[: len(texts[0]) - 1]
    by_name: defaultdict[str, set[Ints]] = defaultdict(set)
    for record, found in zip(records, logical, strict=True):
        if found is not None:
            by_name[record.name].add(tuple(found[name] for name in names))
    placed = [record for record in records if len(by_name[record.name]) == 1]
    values = [next(iter(by_name[record.name])) for record in placed]
    ...


def _logical_indices(record: BufferRecord, taken: Collection[str]) -> dict[str, int] | None:
    """Return the numbers that the names of all tensors in the buffer share, by index name."""
    found: dict[str, int] | None = None
    for tensor in dict.fromkeys(piece.tensor for piece in record.pieces):
        name = split_name(tensor)
        numbers = dict(zip(index_names(name.texts, taken), name.numbers, strict=True))
        found = numbers if found is None else dict(found.items() & numbers.items())
    return found

"""Fold records into families: the canonical cover."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tranship.schema.folding.cover import cover
from tranship.schema.folding.drafts import BufferDraft, TensorDraft, Writer, draft_covers
from tranship.schema.folding.groups import Group, group_buffers, references
from tranship.schema.folding.names import index_names, split_name
from tranship.schema.folding.parts import fold_contents, fold_rows
from tranship.schema.folding.rows import (
    NUMBERS,
    Domain,
    Field,
    Rows,
    Split,
    int_table,
    uniform_field,
)
from tranship.schema.folding.terms import name_tables
from tranship.schema.indexset import to_text
from tranship.schema.manifest import MANIFEST_FORMAT, Manifest
from tranship.schema.mesh import RANK
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    Ints,
    TensorRecord,
    contiguous_strides,
)


def fold(declaration: Declaration) -> Manifest:
    """Fold a valid declaration into its canonical families.

    The result expands to the same records, and does not depend on the order of theirs.
    """
    taken = frozenset({axis.name for axis in declaration.axes} | {RANK})
    tensors = sorted(_fold_tensors(declaration, taken), key=lambda d: (d.texts, d.first))
    buffers = sorted(_fold_buffers(declaration, taken), key=_buffer_order)
    covers = list(draft_covers(tensors, buffers))
    indices = {name for found in covers for name in found.indices}
    expressions = (expression for found in covers for expression in found.expressions())
    names, tables = name_tables(expressions, taken | indices)
    writer = Writer(names)
    everyone = tuple(range(declaration.world_size))
    return Manifest(
        format=MANIFEST_FORMAT,
        side=declaration.side,
        framework=declaration.framework,
        world_size=declaration.world_size,
        ranks=None if declaration.ranks == everyone else to_text(declaration.ranks),
        axes=declaration.axes,
        tables=tables,
        tensors=tuple(writer.tensor(draft) for draft in tensors),
        buffers=tuple(writer.buffer(draft) for draft in buffers),
    )


def _buffer_order(draft: BufferDraft) -> tuple[object, ...]:
    return (draft.texts[0], draft.first.rank, draft.first.name)


def _fold_tensors(declaration: Declaration, taken: frozenset[str]) -> Iterator[TensorDraft]:
    groups: defaultdict[tuple[object, ...], list[TensorRecord]] = defaultdict(list)
    for record in sorted(declaration.tensors):
        texts = (split_name(record.name).texts, split_name(record.tied_to).texts)
        groups[texts, record.shape].append(record)
    domain = Domain((), 1, {}, np.zeros(1, dtype=np.int64))
    for records in groups.values():
        texts = tuple(split_name(name).texts for name in (records[0].name, records[0].tied_to))
        rows = _tensor_rows(records, texts, taken)
        found = fold_rows(domain, rows)
        assert not isinstance(found, Split), "no index is given"
        for one, first in found:
            yield TensorDraft(texts, records[0].shape, one, records[first].name)


def _tensor_rows(
    records: Sequence[TensorRecord], texts: Sequence[tuple[str, ...]], taken: frozenset[str]
) -> Rows:
    """Make every number of the names an index; those of the ties are expressions of them."""
    names = index_names(texts[0], taken)
    numbers = int_table([split_name(record.name).numbers for record in records])
    ties = int_table([split_name(record.tied_to).numbers for record in records])
    labels = (*names, *index_names(texts[1], taken))
    field = Field(NUMBERS, np.concatenate([numbers, ties], axis=1), labels)
    own = dict(zip(names, numbers.T, strict=True))
    return Rows(np.zeros(len(records), dtype=np.int64), own, (field,))


def _fold_buffers(declaration: Declaration, taken: frozenset[str]) -> Iterator[BufferDraft]:
    shapes = {tensor.name: tensor.shape for tensor in declaration.tensors}
    ranks = np.array(declaration.ranks, dtype=np.int64)
    domain = Domain(declaration.axes, declaration.world_size, {}, ranks)
    waiting = list(group_buffers(_sorted_buffers(declaration), shapes, taken))
    while waiting:
        group = waiting.pop()
        result = _fold_group(domain, group, shapes, taken)
        if isinstance(result, BufferDraft):
            yield result
        else:
            waiting += result


def _sorted_buffers(declaration: Declaration) -> list[BufferRecord]:
    return sorted(
        replace(b, pieces=tuple(sorted(b.pieces)), fills=tuple(sorted(b.fills)))
        for b in declaration.buffers
    )


def _fold_group(
    domain: Domain, group: Group, shapes: dict[str, Ints], taken: frozenset[str]
) -> BufferDraft | list[Group]:
    """Make one family of a group, or the groups that it splits into."""
    rows = _buffer_rows(domain, group, taken)
    found = cover(domain, rows)
    if isinstance(found, Split):
        return _parts(domain, group, rows, found)
    varying = {name: group.indices[name] for name in found.indices}
    inside = Domain(domain.axes, domain.world_size, varying, domain.ranks[rows.places])
    contents = fold_contents(inside, group.records, shapes, taken)
    if isinstance(contents, Split):
        return _parts(domain, group, rows, contents)
    return BufferDraft(group.texts, found, contents, group.records[0])


def _parts(domain: Domain, group: Group, rows: Rows, split: Split) -> list[Group]:
    values = {**domain.axis_values(rows.places), **group.indices}[split.name]
    return [group.take(positions) for positions in split.parts(values)]


def _buffer_rows(domain: Domain, group: Group, taken: frozenset[str]) -> Rows:
    records = group.records
    ranks = np.array([record.rank for record in records], dtype=np.int64)
    named = [references(record) for record in records]
    numbers = int_table([sum((split_name(n).numbers for n in names), ()) for names in named])
    labels = tuple(name for texts in group.texts for name in index_names(texts, taken))
    fields = [
        Field(NUMBERS, numbers, labels),
        uniform_field("shape", [record.shape for record in records]),
    ]
    if any(record.strides != contiguous_strides(record.shape) for record in records):
        fields.append(uniform_field("strides", [record.strides for record in records]))
    return Rows(np.searchsorted(domain.ranks, ranks), group.indices, tuple(fields))

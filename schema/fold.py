"""Fold records into families: the canonical cover of a declaration.

One declaration has one cover. It is stated here in full, so that any implementation finds the
same families, expressions, tables and names; the steps are the modules of `folding/`.

**Numbers in names** (`names.py`). A component of a name (between dots) that is all digits is a
number, and so are the digits that end the last component: `layers.3.experts.weight12` has 3 and
12, `layers.3.w13_weight` has 3. Numbers with a leading zero or more than nine digits are text.
What is left are the name's *texts*. A number's index is called after the component before it, if
that is of lower case letters, digits and underscores, 4 to 34 of them, the first a letter, and
ends in one "s", which is dropped (`layers.3`: `layer`); otherwise `index`. Wherever a name is
taken, or is no word that an expression can read, the first free one of `name2`, `name3`, ... is
used. Axes and `rank` are always taken; for an index of a piece, those of its buffer too; for a
table, all indices.

**Order.** Records are sorted as tuples of their fields; axes keep their order, and `rank` comes
after them. "First" means first in these orders. Inputs of expressions are ordered: own indices
(in the order of their numbers in the name), indices of the family around, axes, `rank`.

**Tensors.** Tensors with the same texts, shape and texts of `tied_to` are rows of one *cover*
(below) whose own indices are all numbers of the name.

**Buffers** (`groups.py`).

1. Buffers are alike if they have the same texts (of their own name, and of the names of scale,
   `of` and inputs), dtype, kind, layout, number of dims, role, and encoding with block.
2. A *logical index* is an index name of which the names of all tensors in a buffer give one
   number. Of the logical indices that all buffers alike have, the first as many as the buffer's
   name has numbers become indices. A buffer without pieces takes the values of its namesakes on
   other ranks if these agree; those that have none, or that disagree, are a group apart without
   logical indices.
3. The numbers of the name that the indices so far do not determine become indices, in order.
4. A *member* is all buffers of the same index values. Members whose pieces (over all ranks) have
   the same kinds, and whose fills do, are one group. The kind of a piece is its tensor's texts
   and shape, its part and step; that of a fill its number of dims, value and reason.
5. Each group is the rows of one cover, placed on the ranks. Fields: the numbers of all names, the
   shape, and the strides unless all are contiguous.
6. Its pieces (`parts.py`), by kind, are the rows of covers placed in the buffers: each number of
   the tensor's name is the buffer's index that has the same values (the one of the same name
   before others; none twice), or an own index. Pieces of one tensor in one buffer are told apart
   by an own index `group`, which counts them in order of records and is left out where it does
   not vary. Fields: start, extent, offset, strides unless all are the buffer's last ones, origin
   unless all are 0. Fills likewise, with `group` alone. Where only a split by an index of the
   buffers helps, the group of buffers is split, and covered anew.

**Cover** (`cover.py`). Rows have a place (a rank, or a buffer of the family around), own index
values, and fields of integers. One family covers them, or they are split and each part is
covered.

1. The own index values must be all combinations of their sets, for every member of the family
   around; else split, comparing which combinations of the other indices occur. A set whose text
   is longer than 4096 characters is cut in two.
2. `at`: an axis qualifies if every member has one coordinate on it, and that fits an expression
   of the indices. Of the sets of axes that leave no more places than all that qualify do, the one
   taken is without `rank` if possible, then the smallest, then the one with the fewest table
   entries, then the fewest operations, then the smallest list of positions of its axes, where the
   position of an axis with an expression that is not constant counts negative.
3. If `at` also holds at places that have no row: buffers are split by ranks. Pieces and fills are
   absent there, see 5.
4. Each entry of each field must fit: a number of a name an expression of the indices (the index
   of its own name, if that has the same values), any other of the indices, axes and `rank`. If
   not, split, comparing the entry.
5. The first entry of extent or sizes that, with 0 in the absent rows, fits an expression of axes
   and `rank` alone is taken so, if no extent and stride is negative there; if there is none,
   split by ranks.

**Split** (`splits.py`). Values of an index are of one class if their rows, ordered by the other
indices and rank, are equal in what is compared: the entry; for ranks, the other indices and
ranks. Each coordinate of an axis is a class of its own, and the axis is a candidate only if its
coordinates differ in what is compared: the entry; for ranks, the members. The index or axis with
the fewest classes, two or more, is split; the first of several. If there is none, each value of
the first index or axis that varies is a part; for ranks, the axes go before the indices, and
those that lack a coordinate of the domain before other axes, but `rank` after them.

**Fit** (`fit.py`, `forms.py`). First without `rank`, then with it. The inputs that vary are tried
in ones, twos and threes, in lexicographic order, where they determine the column. Of what fits at
one stage, the expression with the fewest table entries, then the fewest operations is taken, the
first of several. The stages:

0. A constant.
1. A *closed form* of one input x, the first of: chunks `max(min(c, n - x * c), 0)` (axes only: c
   the largest value, none negative, n from the first value between 0 and c, or else full up to
   the last c); `a * x + b`; `a * (x // n) + b`; `a * (x % n) + b`, the smallest n from 2 to the
   largest x, at most 1024; the line through the first two neighbours that differ, clamped to the
   smallest and largest value (axes only). `min` and `max` are written where they change a value.
2. A sum over two inputs: `a * base` of one, a not 0, where the base is x, x // n or x % n, such
   that what is left is a closed form of the other.
3. A table over one input; or as 2, with a table for what is left where no closed form fits.
4. As 2, over three inputs, one after the other.
5. As 4, with a table.
6. `F * base(x) + G` over two inputs, with F and G each a closed form or table of the other.
7. Two tables, or closed forms, over two inputs; the first starts with 0, and is read off at the
   first value of the second input at which all its values occur.

A sum is written: positive terms, then negative ones, each in the order of inputs, then the
constant; a positive constant leads if no term is positive. Terms with factor are `base * a`. A
number of a buffer's name that is constant becomes text again; one in the name of a tie stays in
braces.

**Tables** (`terms.py`). A table over an axis has an entry per coordinate, one over an index ends
with its largest value, none has more than 65536. Its name is `LABEL_by_INPUT`, or `local_LABEL`
where both are one, cut to 60 characters; the label is the axis, the index that the number would
get from its own name, or the field (`shape`, `start`, ...; F of stage 6 adds `_step`). In the
order of families (below), `at` before fields, each table joins the first one of the same name whose
entries it does not contradict. Entries that are still unknown repeat the one before, leading ones
the first known.

**Unquantized modules** fold as tensors without dims do.

**Families** are in order of: tensors, the texts, then the first name; buffers, the texts of the
name, then the first record; pieces and fills in a family, the offset of the first record, then
that record.
"""

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
from tranship.schema.manifest import MANIFEST_FORMAT, Manifest, ModuleFamily, Quantization
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
        quantization=_quantization(declaration, taken, writer),
        tensors=tuple(writer.tensor(draft) for draft in tensors),
        buffers=tuple(writer.buffer(draft) for draft in buffers),
    )


def _quantization(
    declaration: Declaration, taken: frozenset[str], writer: Writer
) -> Quantization | None:
    declared = declaration.quantization
    if declared is None:
        return None
    modules = tuple(TensorRecord(name, ()) for name in declared.unquantized)
    drafts = _fold_tensors(replace(declaration, tensors=modules), taken)
    families = [writer.tensor(d) for d in sorted(drafts, key=lambda d: (d.texts, d.first))]
    return Quantization(
        method=declared.method,
        unquantized=tuple(ModuleFamily(name=f.name, indices=f.indices) for f in families),
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
    ranks = domain.ranks[rows.places]
    inside = Domain(domain.axes, domain.world_size, group.indices, ranks)
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

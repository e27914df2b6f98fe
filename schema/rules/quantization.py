"""The modules that a manifest lists as unquantized are those whose tensors lie in no scaled buffer.

Modules are told by name: a tensor's module is its name without the last part. Tensors of fewer than
two dims, such as norms and biases, are never quantized and never listed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tranship.schema.expression import IntArray
from tranship.schema.manifest import Quantization, Scaled
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.nametables import NameTable, name_of, numbers_of, split_name
from tranship.schema.rules.subject import Subject, Texts
from tranship.schema.rules.world import find_places, names_in_template

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Matrices:
    """The tensors of one name table that have two dims or more, and what is known of each.

    All flags have one entry per row of the table.
    """

    texts: Texts
    table: NameTable
    matrix: Flags
    held: Flags
    scaled: Flags
    listed: Flags

    @property
    def module(self) -> Texts:
        """The texts of the modules' names."""
        return _module(self.texts)

    def module_name(self, row: int) -> str:
        """The name of the module of one tensor."""
        return name_of(self.module, self.table.keys.parts, row)


def _module(texts: Texts) -> Texts:
    *before, last = texts
    return (*before, last.rpartition(".")[0] if "." in last else last)


def quantization(subject: Subject) -> Iterator[Finding]:
    """Compare the list with the buffers, both ways."""
    declared = subject.manifest.quantization
    if declared is None:
        return
    listed = {split_name(family.name).texts for family in declared.unquantized}
    plain = {
        split_name(site.piece.tensor).texts
        for site in subject.pieces
        if len(site.piece.start) > 1 and not isinstance(site.buffer.encoding, Scaled)
    }
    tables = [
        _matrices(subject, texts, table)
        for texts, table in subject.tensor_tables.items()
        if texts in plain or _module(texts) in listed
    ]
    yield from _listed(subject, declared, tables)
    for matrices in tables:
        missing = matrices.matrix & matrices.held & ~matrices.scaled & ~matrices.listed
        yield from _finding(
            matrices, missing, "is plain, and the quantization does not list it as unquantized"
        )
        yield from _finding(
            matrices, matrices.listed & matrices.scaled, "is listed as unquantized, and is scaled"
        )


def _finding(matrices: _Matrices, wrong: Flags, what: str) -> Iterator[Finding]:
    rows = np.flatnonzero(wrong)
    if rows.size:
        more = f" and {rows.size - 1:,} more like it" if rows.size > 1 else ""
        name = matrices.module_name(int(rows[0]))
        yield Finding("TS197", ("quantization", "unquantized"), f"module {name!r}{more} {what}")


def _matrices(subject: Subject, texts: Texts, table: NameTable) -> _Matrices:
    dims = np.array([len(tensor.shape) for tensor in subject.manifest.tensors], dtype=np.int64)
    held, scaled, listed = (np.zeros(table.rows, dtype=np.bool_) for _ in range(3))
    for site in subject.pieces:
        if split_name(site.piece.tensor).texts == texts:
            rows = subject.find_tensor(site.piece.tensor, subject.piece_names(site))
            held[rows] = True
            if isinstance(site.buffer.encoding, Scaled):
                scaled[rows] = True
    return _Matrices(texts, table, dims[table.owner] >= 2, held, scaled, listed)


def _listed(subject: Subject, declared: Quantization, tables: list[_Matrices]) -> Iterator[Finding]:
    """Mark what the list names; find entries that name no module."""
    for number, family in enumerate(declared.unquantized):
        places = find_places(subject.world, family.indices, [], names_in_template(family.name))
        numbers = numbers_of(family.name, places, subject.world)
        known = np.zeros(places.rows, dtype=np.bool_)
        for matrices in tables:
            if matrices.module == split_name(family.name).texts:
                rows = matrices.table.keys.find(numbers, places.rows)
                there = (rows >= 0) & matrices.matrix[rows]
                matrices.listed[rows[there]] = True
                known |= there
        yield from _unknown(number, family.name, numbers, known)


def _unknown(number: int, name: str, numbers: list[IntArray], known: Flags) -> Iterator[Finding]:
    rows = np.flatnonzero(~known)
    if rows.size:
        module = name_of(split_name(name).texts, numbers, int(rows[0]))
        yield Finding(
            "TS197",
            ("quantization", "unquantized", number, "name"),
            f"module {module!r} is listed as unquantized, and has no tensor of two dims or more",
        )

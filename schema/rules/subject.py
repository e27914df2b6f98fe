"""A manifest under examination, with what several rules need of it worked out once."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tranship.schema.canonical import Path
from tranship.schema.expression import IntArray
from tranship.schema.manifest import BufferFamily, Manifest, Piece, TensorFamily, Transfer
from tranship.schema.records import Ints
from tranship.schema.rules.nametables import (
    Member,
    NameTable,
    name_of,
    name_table,
    numbers_of,
    split_name,
)
from tranship.schema.rules.world import (
    Places,
    World,
    blame,
    find_places,
    names_in_template,
    world_of,
)

Texts = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PieceSite:
    """One declared piece: its place in the manifest, and the buffer family that it is of."""

    buffer_number: int
    number: int
    buffer: BufferFamily
    piece: Piece

    @property
    def path(self) -> Path:
        """Where the piece is in the document."""
        return ("buffers", self.buffer_number, "pieces", self.number)

    @property
    def indices(self) -> Mapping[str, str]:
        """The indices that the piece's expressions may read."""
        return {**self.buffer.indices, **self.piece.indices}


@dataclass(frozen=True, eq=False)
class Subject:
    """A manifest whose expressions all have values, and whose names all mean one thing."""

    manifest: Manifest

    @cached_property
    def world(self) -> World:
        """The mesh."""
        return world_of(self.manifest)

    @cached_property
    def pieces(self) -> tuple[PieceSite, ...]:
        """All pieces of all buffers that take part in the transfer."""
        return tuple(
            PieceSite(number, place, buffer, piece)
            for number, buffer in enumerate(self.manifest.buffers)
            if isinstance(buffer.role, Transfer)
            for place, piece in enumerate(buffer.pieces)
        )

    @cached_property
    def pieces_of(self) -> Mapping[int, list[PieceSite]]:
        """The same pieces, by the number of their buffer."""
        pieces = defaultdict[int, list[PieceSite]](list)
        for site in self.pieces:
            pieces[site.buffer_number].append(site)
        return dict(pieces)

    @cached_property
    def tensor_tables(self) -> Mapping[Texts, NameTable]:
        """The names of all tensors, by their texts."""
        members = defaultdict[Texts, list[Member]](list)
        for number, tensor in enumerate(self.manifest.tensors):
            member = Member(number, tensor.name, tensor.indices, {})
            members[split_name(tensor.name).texts].append(member)
        return {texts: name_table(some, (), self.world) for texts, some in members.items()}

    @cached_property
    def buffer_members(self) -> Mapping[Texts, tuple[Member, ...]]:
        """The buffer families, by the texts of their names."""
        members = defaultdict[Texts, list[Member]](list)
        for number, buffer in enumerate(self.manifest.buffers):
            member = Member(number, buffer.name, buffer.indices, buffer.at)
            members[split_name(buffer.name).texts].append(member)
        return {texts: tuple(some) for texts, some in members.items()}

    def buffer_table(self, texts: Texts, axes: frozenset[str] = frozenset()) -> NameTable:
        """Expand the buffers whose names have these texts, apart on at least the given axes."""
        members = self.buffer_members[texts]
        needed = axes.union(*(member.at for member in members))
        key = texts, needed
        if key not in self._buffer_tables:
            self._buffer_tables[key] = name_table(members, needed, self.world)
        return self._buffer_tables[key]

    @cached_property
    def _buffer_tables(self) -> dict[tuple[Texts, frozenset[str]], NameTable]:
        return {}

    def owners(self, site: PieceSite) -> tuple[int, ...]:
        """Find the tensor families that a piece is of, as numbers; -1 is one if any is missing."""
        if site not in self._owners:
            places = self.piece_names(site)
            rows = self.find_tensor(site.piece.tensor, places)
            table = self.tensor_tables.get(split_name(site.piece.tensor).texts)
            owner = table.owner[rows] if table else rows
            self._owners[site] = tuple(np.unique(np.where(rows < 0, -1, owner)).tolist())
        return self._owners[site]

    @cached_property
    def _owners(self) -> dict[PieceSite, tuple[int, ...]]:
        return {}

    def piece_names(self, site: PieceSite) -> Places:
        """Find all places that tell apart the tensors that a piece is of."""
        read = names_in_template(site.piece.tensor)
        with blame(site.path):
            return find_places(self.world, site.indices, [site.buffer.at, site.piece.at], read)

    def find_tensor(self, name: str, places: Places) -> IntArray:
        """Find the rows of a tensor table that a name means at every place; -1 for none."""
        table = self.tensor_tables.get(split_name(name).texts)
        if table is None:
            return np.full(places.rows, -1, dtype=np.int64)
        return table.keys.find(numbers_of(name, places, self.world), places.rows)

    def tensors(self, site: PieceSite) -> list[TensorFamily]:
        """List the declared tensor families that a piece is of."""
        return [self.manifest.tensors[number] for number in self.owners(site) if number >= 0]

    def shapes(self, site: PieceSite) -> set[Ints]:
        """Find the shapes of the tensors that a piece is of."""
        return {tensor.shape for tensor in self.tensors(site)}

    def shape_names(self, site: PieceSite) -> frozenset[str]:
        """Names that must be read to know the shape of the tensor: none where all have one."""
        return names_in_template(site.piece.tensor) if len(self.shapes(site)) > 1 else frozenset()

    def shape_rows(self, site: PieceSite, places: Places) -> IntArray:
        """Find the tensor's shape at every place, `[rows, d]`; places hold `shape_names`."""
        shapes = self.shapes(site)
        if not places.rows:
            return np.empty((0, len(site.piece.start)), dtype=np.int64)
        if len(shapes) == 1:
            return np.tile(np.array(next(iter(shapes)), dtype=np.int64), (places.rows, 1))
        table = self.tensor_tables[split_name(site.piece.tensor).texts]
        owner = table.owner[self.find_tensor(site.piece.tensor, places)]
        known = {n: self.manifest.tensors[n].shape for n in self.owners(site)}
        return np.array([known[int(n)] for n in owner], dtype=np.int64).reshape(places.rows, -1)


def example(name: str, places: Places, row: int, world: World) -> str:
    """Write the name of a buffer or tensor at one place, with the coordinates that are known."""
    one = places.take(np.array([row]))
    template = split_name(name)
    values = {key: int(value[0]) for key, value in one.environment.items()}
    missing = names_in_template(name) - values.keys()
    text = name if missing else name_of(template.texts, numbers_of(name, one, world), 0)
    rest = _coordinates(values, names_in_template(name) if not missing else frozenset())
    return f"{text!r}" + (f" at {rest}" if rest else "")


def _coordinates(values: Mapping[str, int], written: frozenset[str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if key not in written)

"""From a buffer to the buffers that it names: which rows of their name table it means."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tranship.schema.canonical import Path
from tranship.schema.expression import IntArray
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.nametables import NameTable, numbers_of, split_name
from tranship.schema.rules.subject import Subject, example
from tranship.schema.rules.world import Places, find_places, names_in_template


@dataclass(frozen=True)
class Links:
    """What one reference of one buffer family means, wherever the buffer is.

    Row `i` of `places` names row `rows[i]` of `table`, or nothing (-1).
    """

    places: Places
    table: NameTable | None
    rows: IntArray

    @property
    def owners(self) -> list[int]:
        """Numbers of the buffer families that are named, ascending."""
        if self.table is None:
            return []
        return [int(n) for n in np.unique(self.table.owner[self.rows[self.rows >= 0]])]

    def of_owner(self, owner: int) -> tuple[Places, Places]:
        """The places that name members of one family, and row by row the members they name."""
        assert self.table is not None, "there is an owner"
        named = np.flatnonzero(self.rows >= 0)
        named = named[self.table.owner[self.rows[named]] == owner]
        there = self.table.places[owner].take(self.table.place[self.rows[named]])
        return self.places.take(named), there


def find_links(subject: Subject, number: int, reference: str) -> Links:
    """Look up a name that buffer family `number` mentions, on each of the family's ranks."""
    buffer = subject.manifest.buffers[number]
    read = names_in_template(reference) | names_in_template(buffer.name)
    texts = split_name(reference).texts
    if texts not in subject.buffer_members:
        places = find_places(subject.world, buffer.indices, [buffer.at], read)
        return Links(places, None, np.full(places.rows, -1, dtype=np.int64))
    table = subject.buffer_table(texts, frozenset(buffer.at))
    places = find_places(subject.world, buffer.indices, [buffer.at], read.union(table.axes))
    keys = [places.environment[axis] for axis in table.axes]
    keys += numbers_of(reference, places, subject.world)
    return Links(places, table, table.keys.find(keys, places.rows))


def missing(
    code: str, path: Path, reference: str, links: Links, subject: Subject
) -> Iterator[Finding]:
    """Report a reference to a buffer that some rank lacks."""
    lost = np.flatnonzero(links.rows < 0)
    if len(lost):
        owner = subject.manifest.buffers[int(path[1])].name
        what = example(reference, links.places, int(lost[0]), subject.world)
        yield Finding(
            code,
            path,
            f"there is no buffer {what}, which buffer {owner!r} names",
            expected="a buffer on every rank that has this one",
            found="none of this name on that rank",
            help="declare it, or correct the name, the indices or `at`",
        )

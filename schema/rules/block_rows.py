"""Pieces of codes and of scales with keys to join them by: rank, scale buffer and tensor.

Here every tensor is a row of its own. Ranks are told apart as far as any of the pieces needs it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.manifest import BufferFamily, Scaled
from tranship.schema.moves import grid_size
from tranship.schema.rules.nametables import numbers_of, split_name
from tranship.schema.rules.piece_rows import PieceRows, box_names, piece_rows
from tranship.schema.rules.subject import PieceSite, Subject, Texts
from tranship.schema.rules.world import World, names_in_template

ROWS_AT_ONCE = 2**20
"""Ranks are taken in groups, so that a piece has at most about this many rows in each."""


def scale_name(buffer: BufferFamily) -> str:
    """Name the buffer that holds the scales: of codes, another one."""
    return buffer.encoding.scale if isinstance(buffer.encoding, Scaled) else buffer.name


def texts_of(site: PieceSite) -> tuple[Texts, Texts]:
    """The texts of the names of scale buffer and tensor; only pieces of equal texts can join."""
    return split_name(scale_name(site.buffer)).texts, split_name(site.piece.tensor).texts


def axes_read(sites: Sequence[PieceSite]) -> list[str]:
    """Axes on which the boxes of some pieces depend, or where they are."""
    return sorted(frozenset[str]().union(*(box_names(s) - s.indices.keys() for s in sites)))


def groups_of_ranks(
    subject: Subject, sites: Sequence[PieceSite], axes: Sequence[str]
) -> Iterator[World]:
    """Divide ranks that differ on some axes into groups, so that the rows of each stay few."""
    ranks = subject.world.distinct(frozenset(axes))
    group = max(ROWS_AT_ONCE // max(grid_size(site.indices) for site in sites), 1)
    for start in range(0, len(ranks), group):
        yield subject.world.at_ranks(ranks[start : start + group])


def keyed_rows(
    subject: Subject, site: PieceSite, world: World, axes: Sequence[str]
) -> tuple[PieceRows, list[IntArray]]:
    """Evaluate a piece where it has elements; its keys are equal for one rank, scale and tensor."""
    scale, tensor = scale_name(site.buffer), site.piece.tensor
    read = names_in_template(scale) | names_in_template(tensor) | set(axes) | site.indices.keys()
    rows = piece_rows(subject, site, read, world)
    rows = rows.take(np.flatnonzero(rows.box.occupied))
    keys = [rows.places.environment[axis] for axis in axes]
    keys += numbers_of(scale, rows.places, world) + numbers_of(tensor, rows.places, world)
    return rows, keys


def touched_blocks(rows: PieceRows) -> tuple[IntArray, IntArray]:
    """First block, and block after the last, that each piece of codes touches, `[n, d]` each."""
    assert rows.block is not None, "the piece holds codes"
    first = (rows.box.start - rows.origin) // rows.block
    last = (rows.box.start + rows.box.extent - 1 - rows.origin) // rows.block
    return first, last + 1

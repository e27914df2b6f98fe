"""The box of a tensor that a piece holds, wherever the piece is, as arrays."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from tranship.schema.boxes import Boxes
from tranship.schema.expression import IntArray
from tranship.schema.rules.encodings import Block, block_of
from tranship.schema.rules.subject import PieceSite, Subject
from tranship.schema.rules.world import (
    Places,
    World,
    blame,
    columns,
    find_places,
    names_in,
    names_in_at,
)


@dataclass(frozen=True)
class PieceRows:
    """A piece at `n` places: box, and shape, origin and block `[n, d]` of its tensor.

    `block` is None for plain values. The box of scales counts blocks.
    """

    places: Places
    box: Boxes
    shape: IntArray
    origin: IntArray
    block: IntArray | None

    def take(self, index: IntArray) -> "PieceRows":
        """The rows at positions `index`."""
        block = None if self.block is None else self.block[index]
        box = self.box.take(index)
        return PieceRows(self.places.take(index), box, self.shape[index], self.origin[index], block)


def box_names(site: PieceSite) -> frozenset[str]:
    """Names that the box and the origin of a piece depend on, and where the piece is."""
    piece = site.piece
    read = names_in((*piece.start, *piece.extent, *(piece.origin or ())))
    return read | names_in_at(piece.at) | names_in_at(site.buffer.at)


def box_key(subject: Subject, site: PieceSite) -> object:
    """Sum up all on which `piece_rows` depends: equal keys mean equal rows."""
    piece, buffer = site.piece, site.buffer
    named = site.piece.tensor if len(subject.shapes(site)) > 1 else ""
    return (
        (piece.part, piece.start, piece.extent, piece.step, piece.origin),
        (tuple(site.indices.items()), tuple(buffer.at.items()), tuple(piece.at.items())),
        (named, frozenset(subject.shapes(site)), block_of(subject, site)),
    )


def piece_rows(
    subject: Subject,
    site: PieceSite,
    read: AbstractSet[str] = frozenset(),
    world: World | None = None,
) -> PieceRows:
    """Evaluate a piece at all places that differ in its box, or in the names `read`.

    Args:
        subject: The manifest.
        site: The piece.
        read: Further names to tell places apart by.
        world: The mesh with fewer ranks, if not all are wanted.

    Raises:
        TooManyRows: that is too many places.
    """
    world = world or subject.world
    every = box_names(site) | subject.shape_names(site) | read
    at = [site.buffer.at, site.piece.at]
    with blame(site.path):
        places = find_places(world, site.indices, at, every)
    dims = len(site.piece.start)
    box = Boxes(
        columns(site.piece.start, places, world),
        columns(site.piece.extent, places, world),
        site.piece.step or (1,) * dims,
    )
    shape = subject.shape_rows(site, places)
    origin = columns(site.piece.origin or (0,) * dims, places, world)
    block = block_of(subject, site)
    return PieceRows(places, box, shape, origin, None if block is None else _sizes(block, shape))


def _sizes(block: Block, shape: IntArray) -> IntArray:
    """Block sizes in elements, `[n, d]`: "all" is the whole dim, and at least 1."""
    whole = np.array([entry == "all" for entry in block], dtype=bool)
    sizes = np.array([1 if entry == "all" else entry for entry in block], dtype=np.int64)
    return np.where(whole, np.maximum(shape, 1), sizes)

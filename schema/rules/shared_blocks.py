"""No two pieces of a receiver's buffer share a block: it would be quantized twice."""

from collections.abc import Iterator

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.manifest import Scaled, Side
from tranship.schema.rules.block_rows import (
    axes_read,
    groups_of_ranks,
    keyed_rows,
    texts_of,
    touched_blocks,
)
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.piece_rows import PieceRows
from tranship.schema.rules.subject import PieceSite, Subject, example
from tranship.schema.rules.world import World, join


def shared_blocks(subject: Subject) -> Iterator[Finding]:
    """Find blocks of a receiver of which two pieces of one buffer hold a part each."""
    if subject.manifest.side is not Side.RECEIVER:
        return
    for sites in subject.pieces_of.values():
        if isinstance(sites[0].buffer.encoding, Scaled):
            for number, site in enumerate(sites):
                yield from _first(subject, site, sites[: number + 1])


def _first(subject: Subject, site: PieceSite, others: list[PieceSite]) -> Iterator[Finding]:
    """Report the first block that a piece shares with one before it, or with itself."""
    alike = [other for other in others if texts_of(other) == texts_of(site)]
    axes = axes_read(alike)
    for world in groups_of_ranks(subject, alike, axes):
        for other in alike:
            found = _shared(subject, site, other, world, axes)
            if found is not None:
                yield found
                return


def _shared(
    subject: Subject, site: PieceSite, other: PieceSite, world: World, axes: list[str]
) -> Finding | None:
    rows, keys = keyed_rows(subject, site, world, axes)
    theirs, their_keys = (rows, keys) if other is site else keyed_rows(subject, other, world, axes)
    here, there = join(keys, their_keys, (rows.places.rows, theirs.places.rows))
    if other is site:
        here, there = here[here > there], there[here > there]
    low, high = _common(rows.take(here), theirs.take(there))
    for pair in np.flatnonzero((low < high).all(axis=1))[:1]:
        what = example(site.piece.tensor, rows.places, int(here[pair]), subject.world)
        return Finding(
            "TS186",
            site.path,
            f"two pieces of buffer {site.buffer.name!r} share a block of tensor {what}",
            expected="every block in one piece of the buffer",
            found=f"block {low[pair].tolist()} in pieces {other.number} and {site.number}",
        )
    return None


def _common(rows: PieceRows, others: PieceRows) -> tuple[IntArray, IntArray]:
    """First block that row `i` of both touches, and block after the last, `[n, d]` each.

    Blocks from different origins are different blocks.
    """
    first, end = touched_blocks(rows)
    other_first, other_end = touched_blocks(others)
    low = np.maximum(first, other_first)
    return low, np.where(rows.origin == others.origin, np.minimum(end, other_end), low)

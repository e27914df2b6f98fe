"""Values and their scales are held together: on one rank, of one tensor, on one grid of blocks.

Each piece of codes needs one piece of scales in its scale buffer that has its tensor and origin and
all blocks that it touches. Each piece of scales needs a piece of codes of its tensor.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema.manifest import Scale, Scaled
from tranship.schema.rules.block_rows import (
    axes_read,
    groups_of_ranks,
    keyed_rows,
    scale_name,
    texts_of,
    touched_blocks,
)
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.links import find_links
from tranship.schema.rules.memory import BoolArray
from tranship.schema.rules.piece_rows import PieceRows
from tranship.schema.rules.subject import PieceSite, Subject, example
from tranship.schema.rules.world import World, join


def scales(subject: Subject) -> Iterator[Finding]:
    """Check that codes and scales are held together."""
    for number, buffer in enumerate(subject.manifest.buffers):
        own = _sites(subject, [number])
        match buffer.encoding:
            case Scaled(scale=name):
                partners = _sites(subject, find_links(subject, number, name).owners)
                for site in own:
                    yield from _first(subject, site, partners, _has_blocks, _unscaled)
            case Scale(of=name):
                partners = _sites(subject, find_links(subject, number, name).owners)
                for site in own:
                    yield from _first(subject, site, partners, _exists, _unvalued)
            case _:
                pass


def _sites(subject: Subject, numbers: Sequence[int]) -> list[PieceSite]:
    return [site for number in numbers for site in subject.pieces_of.get(number, ())]


Suits = Callable[[PieceRows, PieceRows], BoolArray]
"""Whether row `i` of the partner's rows is what row `i` of the piece's needs, `[n]`."""

Report = Callable[[Subject, PieceSite, "Unmet"], Finding]


@dataclass(frozen=True)
class Unmet:
    """Row `row` of a piece, and whether a partner has its tensor without being what it needs."""

    rows: PieceRows
    row: int
    has_partner: bool


def _first(
    subject: Subject, site: PieceSite, partners: list[PieceSite], suits: Suits, report: Report
) -> Iterator[Finding]:
    """Report the first place where a piece has no partner that suits it."""
    alike = [partner for partner in partners if texts_of(partner) == texts_of(site)]
    axes = axes_read([site, *alike])
    for world in groups_of_ranks(subject, [site, *alike], axes):
        unmet = _unmet(subject, site, alike, suits, world, axes)
        if unmet is not None:
            yield report(subject, site, unmet)
            return


def _unmet(
    subject: Subject,
    site: PieceSite,
    partners: list[PieceSite],
    suits: Suits,
    world: World,
    axes: Sequence[str],
) -> Unmet | None:
    rows, keys = keyed_rows(subject, site, world, axes)
    met = np.zeros(rows.places.rows, dtype=bool)
    known = np.zeros(rows.places.rows, dtype=bool)
    for partner in partners:
        offered, offered_keys = keyed_rows(subject, partner, world, axes)
        here, there = join(keys, offered_keys, (rows.places.rows, offered.places.rows))
        known[here] = True
        met[here[suits(rows.take(here), offered.take(there))]] = True
    lost = np.flatnonzero(rows.box.occupied & ~met)
    return Unmet(rows, int(lost[0]), bool(known[lost[0]])) if len(lost) else None


def _has_blocks(values: PieceRows, scale: PieceRows) -> BoolArray:
    first, end = touched_blocks(values)
    low, high = scale.box.start, scale.box.start + scale.box.extent
    return ((low <= first) & (end <= high) & (values.origin == scale.origin)).all(axis=1)


def _exists(scale: PieceRows, values: PieceRows) -> BoolArray:
    return np.ones(scale.places.rows, dtype=bool)


def _unscaled(subject: Subject, site: PieceSite, unmet: Unmet) -> Finding:
    first, end = (ends[unmet.row] for ends in touched_blocks(unmet.rows))
    what = example(site.piece.tensor, unmet.rows.places, unmet.row, subject.world)
    return Finding(
        "TS178",
        site.path,
        f"buffer {site.buffer.name!r} holds codes of tensor {what} without their scales",
        expected=f"one piece of scales from block {first.tolist()} to {(end - 1).tolist()}, with "
        f"origin {unmet.rows.origin[unmet.row].tolist()}, in {scale_name(site.buffer)!r}",
        found="scales of other blocks, or from another origin"
        if unmet.has_partner
        else "no scales of this tensor",
        help="declare the piece of scales beside the codes: scales that no update writes keep "
        "whatever their memory was allocated with",
    )


def _unvalued(subject: Subject, site: PieceSite, unmet: Unmet) -> Finding:
    what = example(site.piece.tensor, unmet.rows.places, unmet.row, subject.world)
    return Finding(
        "TS179",
        site.path,
        f"buffer {site.buffer.name!r} holds scales of tensor {what} without its codes",
        expected="a piece of codes of this tensor on the same rank",
        help="add the piece of codes, or make this region a fill with a reason",
    )

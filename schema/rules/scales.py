"""Values and their scales are held together: on one rank, of one tensor, on one grid of blocks.

Each piece of codes needs one piece of scales in its scale buffer that has its tensor and origin and
all blocks that it touches. Each piece of scales needs a piece of codes of its tensor.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.manifest import BufferFamily, Scale, Scaled
from tranship.schema.moves import grid_size
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.links import find_links
from tranship.schema.rules.memory import BoolArray
from tranship.schema.rules.nametables import numbers_of, split_name
from tranship.schema.rules.piece_rows import PieceRows, box_names, piece_rows
from tranship.schema.rules.subject import PieceSite, Subject, example
from tranship.schema.rules.world import World, join, names_in_template

ROWS_AT_ONCE = 2**20
"""Ranks are taken in groups, so that a piece has at most about this many rows in each."""


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
    alike = [partner for partner in partners if _texts(partner) == _texts(site)]
    axes = frozenset[str]().union(*(box_names(s) - s.indices.keys() for s in (site, *alike)))
    ranks = subject.world.distinct(axes)
    group = max(ROWS_AT_ONCE // max(grid_size(s.indices) for s in (site, *alike)), 1)
    for start in range(0, len(ranks), group):
        world = subject.world.at_ranks(ranks[start : start + group])
        unmet = _unmet(subject, site, alike, suits, world, sorted(axes))
        if unmet is not None:
            yield report(subject, site, unmet)
            return


def _texts(site: PieceSite) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return split_name(_scale_name(site.buffer)).texts, split_name(site.piece.tensor).texts


def _scale_name(buffer: BufferFamily) -> str:
    return buffer.encoding.scale if isinstance(buffer.encoding, Scaled) else buffer.name


def _unmet(
    subject: Subject,
    site: PieceSite,
    partners: list[PieceSite],
    suits: Suits,
    world: World,
    axes: list[str],
) -> Unmet | None:
    rows, keys = _keyed(subject, site, world, axes)
    met = np.zeros(rows.places.rows, dtype=bool)
    known = np.zeros(rows.places.rows, dtype=bool)
    for partner in partners:
        offered, offered_keys = _keyed(subject, partner, world, axes)
        here, there = join(keys, offered_keys, (rows.places.rows, offered.places.rows))
        known[here] = True
        met[here[suits(rows.take(here), offered.take(there))]] = True
    lost = np.flatnonzero(rows.box.occupied & ~met)
    return Unmet(rows, int(lost[0]), bool(known[lost[0]])) if len(lost) else None


def _keyed(
    subject: Subject, site: PieceSite, world: World, axes: list[str]
) -> tuple[PieceRows, list[IntArray]]:
    """Evaluate a piece where it has elements, with the scale buffer and tensor as numbers."""
    scale, tensor = _scale_name(site.buffer), site.piece.tensor
    read = names_in_template(scale) | names_in_template(tensor) | set(axes)
    rows = piece_rows(subject, site, read, world)
    rows = rows.take(np.flatnonzero(rows.box.occupied))
    keys = [rows.places.environment[axis] for axis in axes]
    keys += numbers_of(scale, rows.places, world) + numbers_of(tensor, rows.places, world)
    return rows, keys


def touched(rows: PieceRows) -> tuple[IntArray, IntArray]:
    """First block, and block after the last, that each piece of values touches, `[n, d]` each."""
    assert rows.block is not None, "the piece holds codes"
    first = (rows.box.start - rows.origin) // rows.block
    last = (rows.box.start + rows.box.extent - 1 - rows.origin) // rows.block
    return first, last + 1


def _has_blocks(values: PieceRows, scale: PieceRows) -> BoolArray:
    first, end = touched(values)
    low, high = scale.box.start, scale.box.start + scale.box.extent
    return ((low <= first) & (end <= high) & (values.origin == scale.origin)).all(axis=1)


def _exists(scale: PieceRows, values: PieceRows) -> BoolArray:
    return np.ones(scale.places.rows, dtype=bool)


def _unscaled(subject: Subject, site: PieceSite, unmet: Unmet) -> Finding:
    first, end = (ends[unmet.row] for ends in touched(unmet.rows))
    what = example(site.piece.tensor, unmet.rows.places, unmet.row, subject.world)
    return Finding(
        "TS178",
        site.path,
        f"buffer {site.buffer.name!r} holds codes of tensor {what} without their scales",
        expected=f"one piece of scales from block {first.tolist()} to {(end - 1).tolist()}, with "
        f"origin {unmet.rows.origin[unmet.row].tolist()}, in {_scale_name(site.buffer)!r}",
        found="scales of other blocks, or from another origin"
        if unmet.has_partner
        else "no scales of this tensor",
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

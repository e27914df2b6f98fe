"""Pieces hold elements that their tensor has, and scales of blocks that it has.

The blocks of a tensor are counted from an origin: block `b` holds elements `origin + b * size` to
`origin + (b + 1) * size - 1`, as far as the tensor has them. Blocks before the origin are negative.
"""

from collections.abc import Iterator

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.manifest import MAX_DIM, Part
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.memory import LARGEST
from tranship.schema.rules.piece_rows import PieceRows, box_key, piece_rows
from tranship.schema.rules.subject import PieceSite, Subject, example


def tensor_boxes(subject: Subject) -> Iterator[Finding]:
    """Check the box of every piece against its tensor, or against the tensor's blocks."""
    sound = set[object]()
    for site in subject.pieces:
        key = box_key(subject, site)
        if key in sound:
            continue
        rows = piece_rows(subject, site)
        wrong = [*_origin(subject, site, rows), *_box(subject, site, rows)]
        yield from wrong
        if not wrong:
            sound.add(key)


def _origin(subject: Subject, site: PieceSite, rows: PieceRows) -> Iterator[Finding]:
    """Find origins so far away that block numbers would overflow."""
    wrong = (np.abs(rows.origin) > MAX_DIM).any(axis=1)
    for row in np.flatnonzero(wrong)[:1]:
        yield Finding(
            "TS182",
            (*site.path, "origin"),
            f"the origin is far outside tensor {_name(subject, site, rows, int(row))}",
            expected=f"from -{MAX_DIM:,} to {MAX_DIM:,}",
            found=str(rows.origin[row].tolist()),
        )


def _box(subject: Subject, site: PieceSite, rows: PieceRows) -> Iterator[Finding]:
    is_scale = site.piece.part is Part.SCALE
    low, high = block_range(rows) if is_scale else (np.zeros_like(rows.shape), rows.shape)
    step = np.array(rows.box.step, dtype=np.int64)
    steps = rows.box.extent - 1
    far = rows.box.start + steps.astype(np.float64) * step >= LARGEST
    last = rows.box.start + steps * step
    wrong = ((rows.box.start < low) | far | (last >= high)).any(axis=1) & rows.box.occupied
    for row in np.flatnonzero(wrong)[:1]:
        ends = f"from {low[row].tolist()} to {(high[row] - 1).tolist()}"
        yield Finding(
            "TS165",
            site.path,
            f"the piece leaves tensor {_name(subject, site, rows, int(row))}",
            expected=f"{'blocks' if is_scale else 'elements'} {ends}",
            found=f"start {rows.box.start[row].tolist()}, extent {rows.box.extent[row].tolist()}"
            + (f", step {list(rows.box.step)}" if site.piece.step else ""),
        )


def block_range(rows: PieceRows) -> tuple[IntArray, IntArray]:
    """First block that holds an element of the tensor, and block after the last, `[n, d]` each."""
    assert rows.block is not None, "the piece holds scales"
    return -rows.origin // rows.block, -((rows.origin - rows.shape) // rows.block)


def _name(subject: Subject, site: PieceSite, rows: PieceRows, row: int) -> str:
    return example(site.piece.tensor, rows.places, row, subject.world)

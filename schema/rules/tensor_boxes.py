"""Pieces hold elements that their tensor has, and scales of blocks that it has.

The blocks of a tensor are counted from an origin: block `b` holds elements `origin + b * size` to
`origin + (b + 1) * size - 1`, as far as the tensor has them. Block 0 holds at least one.
"""

from collections.abc import Iterator

import numpy as np

from tranship.schema.expression import IntArray
from tranship.schema.manifest import Part
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
    if rows.block is None:
        return
    before, after = rows.origin <= -rows.block, rows.origin >= np.maximum(rows.shape, 1)
    wrong = (before | after).any(axis=1) & rows.box.occupied
    for row in np.flatnonzero(wrong)[:1]:
        yield Finding(
            "TS182",
            (*site.path, "origin"),
            f"block 0 holds nothing of tensor {_name(subject, site, rows, int(row))}",
            expected=f"an origin inside the tensor, or less than a block before it: shape "
            f"{rows.shape[row].tolist()}, block {rows.block[row].tolist()}",
            found=str(rows.origin[row].tolist()),
        )


def _box(subject: Subject, site: PieceSite, rows: PieceRows) -> Iterator[Finding]:
    is_scale = site.piece.part is Part.SCALE
    limit = block_counts(rows) if is_scale else rows.shape
    step = np.array(rows.box.step, dtype=np.int64)
    steps = rows.box.extent - 1
    far = rows.box.start + steps.astype(np.float64) * step >= LARGEST
    last = rows.box.start + steps * step
    wrong = ((rows.box.start < 0) | far | (last >= limit)).any(axis=1) & rows.box.occupied
    for row in np.flatnonzero(wrong)[:1]:
        unit, whole = ("blocks", "blocks") if is_scale else ("elements", "shape")
        yield Finding(
            "TS165",
            site.path,
            f"the piece leaves tensor {_name(subject, site, rows, int(row))}",
            expected=f"{unit} of a tensor with {whole} {limit[row].tolist()}",
            found=f"start {rows.box.start[row].tolist()}, extent {rows.box.extent[row].tolist()}"
            + (f", step {list(rows.box.step)}" if site.piece.step else ""),
        )


def block_counts(rows: PieceRows) -> IntArray:
    """Number of blocks of the tensor from block 0 on, `[n, d]`."""
    assert rows.block is not None, "the piece holds scales"
    return np.maximum(-((rows.origin - rows.shape) // rows.block), 0)


def _name(subject: Subject, site: PieceSite, rows: PieceRows, row: int) -> str:
    return example(site.piece.tensor, rows.places, row, subject.world)

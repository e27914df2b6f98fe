"""Packed scales can be told from the codes that they are of: `layouts.py` says how.

The engine's memory repeats a row of scales for each of 128 rows of codes, whatever tensors these
rows are of. So every piece of codes must begin with a block, and where that block is in the buffer
of scales must follow from where the piece is in the buffer of codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tranship.schema.canonical import Path
from tranship.schema.dtypes import DType
from tranship.schema.expression import IntArray
from tranship.schema.layouts import PACKED_BLOCK, PACKED_SCALES, declared_scales
from tranship.schema.manifest import BufferFamily, Scale, Transfer
from tranship.schema.rules.block_rows import (
    axes_read,
    groups_of_ranks,
    keyed_rows,
    texts_of,
    touched_blocks,
)
from tranship.schema.rules.encodings import partner_blocks
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.links import find_links
from tranship.schema.rules.memory import BoolArray
from tranship.schema.rules.piece_rows import PieceRows
from tranship.schema.rules.subject import PieceSite, Subject, example
from tranship.schema.rules.world import World, columns, join, names_in


def packed_scales(subject: Subject) -> Iterator[Finding]:
    """Check every buffer of packed scales, and the codes that it has the scales of."""
    for number, buffer in enumerate(subject.manifest.buffers):
        if buffer.layout == PACKED_SCALES and isinstance(buffer.role, Transfer):
            path, encoding = ("buffers", number), buffer.encoding
            if not isinstance(encoding, Scale):
                yield _misfit((*path, "encoding"), buffer, "encoding scale", encoding.kind)
                continue
            codes = find_links(subject, number, encoding.of).owners
            wrong = [*_alone(path, buffer), *_of_blocks(subject, path, buffer, codes)]
            yield from wrong or _placed(subject, number, codes)


def _misfit(path: Path, buffer: BufferFamily, expected: str, found: object) -> Finding:
    return Finding(
        "TS198",
        path,
        f"buffer {buffer.name!r} cannot have layout {buffer.layout}",
        expected=expected,
        found=f"{found}",
        help="the layout is of exponents of 128 x 128 blocks alone; for other scales have the "
        "engine hold the checkpoint layout",
    )


def _alone(path: Path, buffer: BufferFamily) -> Iterator[Finding]:
    """Check what one family says of itself."""
    if buffer.dtype is not DType.F8E8M0FNU:
        yield _misfit((*path, "dtype"), buffer, f"dtype {DType.F8E8M0FNU}", buffer.dtype)
    if buffer.strides is not None:
        found = list(buffer.strides)
        yield _misfit((*path, "strides"), buffer, "no strides: bytes follow each other", found)
    for number, fill in enumerate(buffer.fills):
        if fill.value:
            yield _misfit((*path, "fills", number, "value"), buffer, "padding of value 0", 1)


def _of_blocks(
    subject: Subject, path: Path, buffer: BufferFamily, codes: list[int]
) -> Iterator[Finding]:
    """Check that the codes are in blocks of 128 x 128, in contiguous buffers."""
    blocks = partner_blocks(subject, codes)
    for block in blocks:
        if block[-2:] != (PACKED_BLOCK,) * 2 or any(entry != 1 for entry in block[:-2]):
            expected = f"codes in blocks of {PACKED_BLOCK} x {PACKED_BLOCK}"
            yield _misfit((*path, "layout"), buffer, expected, list(block))
    for number in codes:
        other = subject.manifest.buffers[number]
        dims = len(buffer.shape)
        if len(other.shape) != dims or any(len(block) > dims for block in blocks):
            expected = f"as many dims as its codes, whose shape is {list(other.shape)}"
            yield _misfit((*path, "shape"), buffer, expected, list(buffer.shape))
        if other.strides is not None:
            expected = f"contiguous codes in {other.name!r}"
            yield _misfit((*path, "layout"), buffer, expected, list(other.strides))


def _placed(subject: Subject, number: int, codes: list[int]) -> Iterator[Finding]:
    """Report the pieces that do not lie where the layout needs them.

    Where several conditions are broken, the first one may well be why the others are.
    """
    found = [
        broken
        for site in subject.pieces_of.get(number, ())
        for owner in codes
        for partner in subject.pieces_of.get(owner, ())
        if texts_of(partner) == texts_of(site)
        for broken in _first(subject, site, partner)
    ]
    least = min((condition for condition, _ in found), default=0)
    yield from (finding for condition, finding in found if condition == least)


def _first(subject: Subject, site: PieceSite, partner: PieceSite) -> Iterator[tuple[int, Finding]]:
    """Yield the first condition that a piece breaks, as its number and what is found."""
    fields = [
        entry
        for own in (site, partner)
        for entry in (own.piece.offset, *(own.piece.strides or ()), *own.buffer.shape)
    ]
    indices = site.indices.keys() | partner.indices.keys()
    axes = sorted({*axes_read([site, partner]), *(names_in(fields) - indices)})
    for world in groups_of_ranks(subject, [site, partner], axes):
        scales, keys = keyed_rows(subject, site, world, axes)
        values, their_keys = keyed_rows(subject, partner, world, axes)
        here, there = join(keys, their_keys, (scales.places.rows, values.places.rows))
        scales, values = scales.take(here), values.take(there)
        of = _in_memory(site, scales, world), _in_memory(partner, values, world)
        for condition, (expected, right) in enumerate(_conditions(scales, values, *of)):
            for row in np.flatnonzero(_together(scales, values) & ~right)[:1]:
                what = example(site.piece.tensor, scales.places, int(row), subject.world)
                found = f"tensor {what} at {of[1].place[row].tolist()} of {partner.buffer.name!r}"
                found += f", its scales at {of[0].place[row].tolist()}"
                yield condition, _misfit(site.path, site.buffer, expected, found)
                return


@dataclass(frozen=True)
class _Memory:
    """Where pieces lie: shape and strides of their buffers `[n, D]`, their strides `[n, d]`.

    `place` `[n, D]` is that of the first element of a piece, dim by dim.
    """

    shape: IntArray
    strides: IntArray
    own: IntArray
    place: IntArray


def _in_memory(site: PieceSite, rows: PieceRows, world: World) -> _Memory:
    shape = columns(site.buffer.shape, rows.places, world)
    sizes = np.maximum(shape, 1)[:, ::-1]
    strides = (np.cumprod(sizes, axis=1) // sizes)[:, ::-1]
    last = strides[:, strides.shape[1] - len(site.piece.start) :]
    own = site.piece.strides
    offset = columns((site.piece.offset,), rows.places, world)
    return _Memory(
        shape,
        strides,
        last if own is None else columns(own, rows.places, world),
        offset // strides % np.maximum(shape, 1),
    )


def _together(scales: PieceRows, values: PieceRows) -> BoolArray:
    """Which pieces of codes have their scales in the piece of scales beside them, `[n]`."""
    first, end = touched_blocks(values)
    low, high = scales.box.start, scales.box.start + scales.box.extent
    return ((low <= first) & (end <= high) & (values.origin == scales.origin)).all(axis=1)


def _conditions(
    scales: PieceRows, values: PieceRows, scale: _Memory, value: _Memory
) -> Iterator[tuple[str, BoolArray]]:
    """Yield what must hold of pieces of scales and codes, and where it does, `[n]`."""
    along = np.ones(len(value.place), dtype=bool)
    for rows, held in ((scales, scale), (values, value)):
        last = held.strides[:, held.strides.shape[1] - held.own.shape[1] :]
        along &= ((held.own == last) | (rows.box.extent <= 1)).all(axis=1)
    yield "rows and columns of the tensor along those of the buffer", along
    size = np.ones_like(value.place)
    size[:, -2:] = PACKED_BLOCK
    block, rest = np.divmod(value.place, size)
    begun = (values.box.start - values.origin)[:, -2:] % PACKED_BLOCK
    yield (
        "pieces of codes that begin with a block, at multiples of 128 rows and columns",
        (begun == 0).all(axis=1) & (rest == 0).all(axis=1),
    )
    wanted = [declared_scales(tuple(shape)) for shape in value.shape.tolist()]
    shape = np.array(wanted, dtype=np.int64).reshape(scale.shape.shape)
    yield (
        "a shape of [..., ceil(n / 128), 4 * ceil(k / 512)] for codes [..., n, k]",
        (scale.shape == shape).all(axis=1),
    )
    skipped = touched_blocks(values)[0] - scales.box.start
    place = scale.place.copy()
    place[:, place.shape[1] - skipped.shape[1] :] += skipped
    yield "every scale where its block of codes is", (place == block).all(axis=1)

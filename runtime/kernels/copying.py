# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false, reportInvalidTypeForm=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false
# The language is Triton's, and not Python's.
"""Kernels that move bytes: contiguous chunks, rows, and single elements; and constants.

All rows of a record table are int64. Addresses are in bytes. A kernel for `UNIT` relies on every
address, and every step between rows, being a multiple of `UNIT` bytes.

Where words of 8 bytes are moved, their digest can be taken on the way: of what was loaded (`TAKEN`)
and of what the target holds afterwards (`KEPT`). The target is read back once its stores are done,
while it is still in the cache: on an H100 that costs no time that could be measured.
"""

import triton
import triton.language as tl

from tranship.runtime.kernels.arithmetic import GOLDEN, mix
from tranship.runtime.kernels.tables import LANES

_LANES: tl.constexpr = tl.constexpr(LANES)


@triton.jit
def pointer_to(address, UNIT: tl.constexpr):
    """Return a pointer to words of up to 8 bytes that lie at a multiple of `UNIT` bytes."""
    if UNIT >= 8:
        pointer = tl.multiple_of(address.to(tl.pointer_type(tl.int64)), UNIT)
    elif UNIT == 4:
        pointer = address.to(tl.pointer_type(tl.int32))
    elif UNIT == 2:
        pointer = address.to(tl.pointer_type(tl.int16))
    else:
        pointer = address.to(tl.pointer_type(tl.uint8))
    return pointer


@triton.jit
def mixed_words(words, places, inside):
    """Mix words that lie at `places` of their message, counted from 1."""
    return tl.where(inside, mix(words + places * GOLDEN), 0)


@triton.jit
def add_digest(digests, entry, mixed):
    """Add mixed words to a digest."""
    lane = tl.program_id(0) % _LANES
    tl.atomic_add(digests + entry * _LANES + lane, tl.sum(tl.ravel(mixed), axis=0), sem="relaxed")


@triton.jit
def copy_chunks(
    records,
    taken,
    kept,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
    UNIT: tl.constexpr,
    TAKEN: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Copy at most `SIZE` contiguous bytes a program, `STEP` at a time.

    Columns of `records`: source, target, units, place of the first word, digest, 0, 0, 0.
    """
    record = records + tl.program_id(0).to(tl.int64) * 8
    WORD: tl.constexpr = min(UNIT, 8)
    source, target = tl.load(record), tl.load(record + 1)
    count = tl.load(record + 2) * (UNIT // WORD)
    first, entry = tl.load(record + 3), tl.load(record + 4)
    at = tl.arange(0, STEP // WORD)
    sums = tl.zeros((STEP // WORD,), tl.int64)
    for k in range(SIZE // STEP):
        number = at + k * (STEP // WORD)
        words = tl.load(pointer_to(source, UNIT) + number, mask=number < count)
        tl.store(pointer_to(target, UNIT) + number, words, mask=number < count)
        if TAKEN:
            sums += mixed_words(words, first + number, number < count)
    if TAKEN:
        add_digest(taken, entry, sums)
    if KEPT:
        tl.debug_barrier()
        sums = tl.zeros((STEP // WORD,), tl.int64)
        for k in range(SIZE // STEP):
            number = at + k * (STEP // WORD)
            there = pointer_to(target, UNIT) + number
            words = tl.load(there, mask=number < count, cache_modifier=".cg")
            sums += mixed_words(words, first + number, number < count)
        add_digest(kept, entry, sums)


@triton.jit
def copy_rows(
    records,
    taken,
    kept,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
    UNIT: tl.constexpr,
    TAKEN: tl.constexpr,
    KEPT: tl.constexpr,
):
    """Copy at most `ROWS` rows of at most `BYTES` contiguous bytes a program.

    Columns of `records`: source, target, steps between rows there, in units, rows, units of a row,
    place of the first word, words from row to row of the message, digest.
    """
    record = records + tl.program_id(0).to(tl.int64) * 9
    WORD: tl.constexpr = min(UNIT, 8)
    PER_UNIT: tl.constexpr = UNIT // WORD
    source, target = pointer_to(tl.load(record), UNIT), pointer_to(tl.load(record + 1), UNIT)
    source_step, target_step = tl.load(record + 2) * PER_UNIT, tl.load(record + 3) * PER_UNIT
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BYTES // WORD)[None, :]
    inside = (rows < tl.load(record + 4)) & (columns < tl.load(record + 5) * PER_UNIT)
    words = tl.load(source + rows * source_step + columns, mask=inside)
    tl.store(target + rows * target_step + columns, words, mask=inside)
    if TAKEN or KEPT:
        places = tl.load(record + 6) + rows * tl.load(record + 7) + columns
        if TAKEN:
            add_digest(taken, tl.load(record + 8), mixed_words(words, places, inside))
        if KEPT:
            tl.debug_barrier()
            words = tl.load(
                target + rows * target_step + columns, mask=inside, cache_modifier=".cg"
            )
            add_digest(kept, tl.load(record + 8), mixed_words(words, places, inside))


@triton.jit
def copy_elements(
    records,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ITEM: tl.constexpr,
    CONSTANT: tl.constexpr,
):
    """Copy single elements of `ITEM` bytes, or write a constant to them.

    Columns of `records`: source (or the constant's bits), target, row and column steps there in
    elements, rows, columns.
    """
    record = records + tl.program_id(0).to(tl.int64) * 8
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    inside = (rows < tl.load(record + 6)) & (columns < tl.load(record + 7))
    target = pointer_to(tl.load(record + 1), ITEM)
    target += rows * tl.load(record + 4) + columns * tl.load(record + 5)
    if CONSTANT:
        tl.store(target, tl.load(record).to(target.dtype.element_ty), mask=inside)
    else:
        source = pointer_to(tl.load(record), ITEM)
        source += rows * tl.load(record + 2) + columns * tl.load(record + 3)
        tl.store(target, tl.load(source, mask=inside), mask=inside)


@triton.jit
def digest_elements(records, digests, WORDS: tl.constexpr, ITEM: tl.constexpr, DIMS: tl.constexpr):
    """Digest elements of `ITEM` bytes in `DIMS` dims, as the words that they make in a message.

    Columns of `records`: address, elements in all, place of the box's first word, digest, first
    word of this program, then of every dim, innermost first, its size and its step in elements.
    """
    record = records + tl.program_id(0).to(tl.int64) * (5 + 2 * DIMS)
    PER_WORD: tl.constexpr = 8 // ITEM
    address = pointer_to(tl.load(record), ITEM)
    count = tl.load(record + 1)
    number = tl.load(record + 4) + tl.arange(0, WORDS)
    words = tl.zeros((WORDS,), tl.int64)
    for part in tl.static_range(PER_WORD):
        place = number * PER_WORD + part
        inside = place < count
        if DIMS == 0:
            offset = place
        else:
            offset = _offset(record, place, WORDS, DIMS)
        value = tl.load(address + offset, mask=inside, other=0)
        if ITEM < 8:
            value = value.to(tl.int64) & ((1 << (8 * ITEM)) - 1)
        words |= value << (8 * ITEM * part)
    places = tl.load(record + 2) + number
    mixed = mixed_words(words, places, number * PER_WORD < count)
    add_digest(digests, tl.load(record + 3), mixed)


@triton.jit
def _offset(record, place, WORDS: tl.constexpr, DIMS: tl.constexpr):
    """Return how many elements from the first one the elements at `place` lie, row-major."""
    offset = tl.zeros((WORDS,), tl.int64)
    for dim in tl.static_range(DIMS - 1):
        size = tl.load(record + 5 + 2 * dim)
        offset += place % size * tl.load(record + 6 + 2 * dim)
        place = place // size
    return offset + place * tl.load(record + 4 + 2 * DIMS)

"""Pieces and fills lie inside their buffer, tile a receiver's, and never overlap.

Where the pieces of a buffer follow each other in memory this is seen from their ends, for all
buffers at once; the others are looked at one by one, each distinct one once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tranship.schema.canonical import Path, join_pointer
from tranship.schema.expression import IntArray
from tranship.schema.manifest import BufferFamily, Scale, Side, Transfer
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.memory import BoolArray, Memory, Regions, memory_key, memory_of
from tranship.schema.rules.subject import Subject, example
from tranship.schema.rules.tiling import Region, Spot, Tiling, tile
from tranship.schema.rules.world import Places, World, blame


def geometry(subject: Subject) -> Iterator[Finding]:
    """Check the memory of every buffer, and what lies in it."""
    is_receiver = subject.manifest.side is Side.RECEIVER
    sound = set[object]()
    for number, buffer in enumerate(subject.manifest.buffers):
        path, key = ("buffers", number), memory_key(buffer)
        if key in sound:
            continue
        with blame(path):
            memory = memory_of(path, buffer, subject.world)
        examined = Examined(path, buffer, memory, subject.world)
        wrong = [*_possible(examined), *_inside(examined)]
        if not wrong and isinstance(buffer.role, Transfer):
            wrong = [*_described(examined)] or [*_tiled(examined, is_receiver)]
        yield from wrong
        if not wrong:
            sound.add(key)


@dataclass(frozen=True)
class Examined:
    """A buffer family, where it is declared, and its memory."""

    path: Path
    buffer: BufferFamily
    memory: Memory
    world: World

    def name(self, places: Places, row: int) -> str:
        """Write the name of the buffer at one place, and the place."""
        return example(self.buffer.name, places, row, self.world)

    def what(self, path: Path) -> str:
        """Write what the piece or fill at a path of the manifest is."""
        kind, number = path[len(self.path) :]
        if kind == "fills":
            return "a fill"
        return f"a piece of {self.buffer.pieces[int(number)].tensor!r}"

    @property
    def regions(self) -> list[tuple[Path, str, Places, Regions]]:
        """All regions with their paths and the names of their fields of sizes: buffers first."""
        whole = [(self.path, "shape", self.memory.places, self.memory.buffers)]
        return whole + [
            (part.path, "extent" if "pieces" in part.path else "sizes", part.places, part.regions)
            for part in self.memory.parts
        ]


def _possible(examined: Examined) -> Iterator[Finding]:
    """Find sizes and strides that no memory has."""
    for path, field, places, regions in examined.regions:
        for what, entries in ((field, regions.sizes), ("strides", regions.strides)):
            for row in np.flatnonzero((entries < 0).any(axis=1))[:1]:
                yield Finding(
                    "TS162",
                    (*path, what),
                    f"{what} is negative in buffer {examined.name(places, int(row))}",
                    expected="no negative entry; max(0, ...) makes an empty region",
                    found=str(entries[row].tolist()),
                )
        for row in np.flatnonzero(_positive(regions) & ~regions.fits)[:1]:
            yield Finding(
                "TS162",
                (*path, field),
                f"{field} is more than any memory in buffer {examined.name(places, int(row))}",
                expected="fewer than 2**61 elements",
                found=str(regions.sizes[row].tolist()),
            )
        for row in np.flatnonzero(_positive(regions) & regions.fits & ~regions.nests)[:1]:
            yield Finding(
                "TS163",
                (*path, "strides"),
                "two elements may share their place in buffer " + examined.name(places, int(row)),
                expected="each stride larger than the span of all smaller ones",
                found=f"sizes {regions.sizes[row].tolist()}, "
                f"strides {regions.strides[row].tolist()}",
            )


def _positive(regions: Regions) -> BoolArray:
    return np.all((regions.sizes >= 0) & (regions.strides >= 0), axis=1)


def _inside(examined: Examined) -> Iterator[Finding]:
    """Find pieces and fills that start before their buffer or end after it."""
    buffers = examined.memory.buffers
    last = buffers.last
    for part in examined.memory.parts:
        regions = part.regions
        known = _positive(regions) & regions.fits & regions.occupied
        known &= (_positive(buffers) & buffers.fits)[part.owner]
        outside = known & ((regions.offset < 0) | (regions.last > last[part.owner]))
        for row in np.flatnonzero(outside)[:1]:
            yield Finding(
                "TS164",
                part.path,
                f"{examined.what(part.path)} leaves buffer {examined.name(part.places, int(row))}",
                expected=f"elements 0 to {int(last[part.owner[row]])}",
                found=f"elements {int(regions.offset[row])} to {int(regions.last[row])}",
                help="hold the part that is this rank's, with start and extent by its axes, or "
                "declare the buffer as large as it is",
            )


def _described(examined: Examined) -> Iterator[Finding]:
    """Find buffers with elements, of which no piece or fill says what they are."""
    buffers = examined.memory.buffers
    parts = np.zeros(len(buffers.offset), dtype=np.int64)
    for part in examined.memory.parts:
        np.add.at(parts, part.owner, 1)
    for row in np.flatnonzero((parts == 0) & buffers.occupied)[:1]:
        yield Finding(
            "TS170",
            examined.path,
            f"buffer {examined.name(examined.memory.places, int(row))} has neither piece nor fill",
            expected="pieces, or a role other than transfer",
            help="declare the tensors that it holds; where no update changes it, declare it "
            "constant and say why; where a recipe computes it from others, derived",
        )


def _tiled(examined: Examined, is_receiver: bool) -> Iterator[Finding]:
    """Find elements that are held twice, or on a receiver not at all."""
    held = flatten(examined.memory)
    seen = set[object]()
    reported = set[str]()
    for row in np.flatnonzero(~_follow_each_other(examined.memory.buffers, held, is_receiver)):
        buffer = examined.memory.buffers.region(int(row))
        parts = _parts_of(examined.memory, held, int(row))
        key = buffer, tuple(sorted((r.offset, r.sizes, r.strides) for _, r in parts))
        if key in seen:
            continue
        seen.add(key)
        tiling = tile(buffer, [region for _, region in parts])
        for finding in _faults(examined, int(row), parts, tiling, is_receiver):
            if finding.code not in reported:
                reported.add(finding.code)
                yield finding.under(examined.path)


@dataclass(frozen=True)
class Held:
    """All regions of a family that hold anything, ordered by buffer row, then first address.

    Region `i` is row `row[i]` of part `part[i]`; it lies in buffer row `owner[i]`, from address
    `first[i]` to `last[i]`, and has `volume[i]` elements.
    """

    owner: IntArray
    part: IntArray
    row: IntArray
    first: IntArray
    last: IntArray
    volume: IntArray


def flatten(memory: Memory) -> Held:
    """Put the pieces and fills of all buffers of a family in one list."""
    fields: list[list[IntArray]] = [[np.zeros(0, dtype=np.int64)] * 6]
    for number, part in enumerate(memory.parts):
        rows = np.flatnonzero(part.regions.occupied)
        regions = part.regions.take(rows)
        numbers = np.full(len(rows), number, dtype=np.int64)
        owner = part.owner[rows]
        fields.append([owner, numbers, rows, regions.offset, regions.last, regions.volume])
    owner, part_of, row, first, last, volume = (
        np.concatenate(f) for f in zip(*fields, strict=True)
    )
    order = np.lexsort([first, owner])
    return Held(*(field[order] for field in (owner, part_of, row, first, last, volume)))


def _follow_each_other(buffers: Regions, held: Held, complete: bool) -> BoolArray:
    """Which buffers, `[n]`, have no gap in memory, and regions that end before the next starts.

    With `complete`, the regions must have as many elements as the buffer, which then they tile.
    """
    good = buffers.last + 1 == buffers.volume
    overlaps = (held.owner[1:] == held.owner[:-1]) & (held.first[1:] <= held.last[:-1])
    good[held.owner[1:][overlaps]] = False
    if complete:
        volume = np.zeros(len(good), dtype=np.int64)
        np.add.at(volume, held.owner, held.volume)
        good &= volume == buffers.volume
    return good


Placed = tuple[Path, Region]


def _parts_of(memory: Memory, held: Held, row: int) -> list[Placed]:
    """List the regions in one buffer, with the paths of what declares them inside the family."""
    low, high = np.searchsorted(held.owner, [row, row + 1])
    return [
        (memory.parts[part].path[-2:], memory.parts[part].regions.region(place))
        for part, place in zip(
            held.part[low:high].tolist(), held.row[low:high].tolist(), strict=True
        )
    ]


def _faults(
    examined: Examined, row: int, parts: list[Placed], tiling: Tiling | None, is_receiver: bool
) -> Iterator[Finding]:
    """Say what keeps the parts of one buffer, row `row` of its family, from tiling it."""
    name = examined.name(examined.memory.places, row)
    buffer = examined.memory.buffers.region(row)
    if tiling is None:
        yield Finding(
            "TS168",
            (),
            f"it cannot be decided whether the pieces of buffer {name} overlap",
            expected="strides that divide one another, or fewer pieces",
        )
        return
    if tiling.outside:
        yield _outside(name, parts, tiling.outside)
    if tiling.repeated:
        yield _repeated(examined, row, parts, tiling.repeated)
    if tiling.missing and is_receiver:
        yield Finding(
            "TS167",
            (),
            f"{tiling.missing.count:,} of the {buffer.volume:,} elements of buffer {name} are in "
            "no piece and no fill",
            expected="every element in one piece or fill",
            found=f"the first is element {_element(buffer, tiling.missing)}",
            help="add the pieces that hold them, or a fill with a value or a reason",
        )


def _outside(name: str, parts: list[Placed], spot: Spot) -> Finding:
    path = next(path for path, region in parts if region.index(spot.address) is not None)
    return Finding(
        "TS164",
        path,
        f"the region takes memory between the elements of buffer {name}",
        expected="elements of the buffer alone, given its strides",
        found=f"address {spot.address}, in elements from its start",
    )


def _repeated(examined: Examined, row: int, parts: list[Placed], spot: Spot) -> Finding:
    paths = [path for path, region in parts if region.index(spot.address) is not None]
    name = examined.name(examined.memory.places, row)
    holders = (
        f"{join_pointer(path)} ({examined.what((*examined.path, *path))})"
        for path in dict.fromkeys(paths)
    )
    is_scale = isinstance(examined.buffer.encoding, Scale)
    return Finding(
        "TS166",
        paths[-1],
        f"{spot.count:,} elements of buffer {name} are in more than one piece or fill",
        expected="every element in one of them at most",
        found=f"element {_element(examined.memory.buffers.region(row), spot)} is in "
        + " and ".join(holders),
        help="tensors whose blocks share a scale cannot be quantized apart: leave the buffer "
        "unquantized, or cut it between blocks"
        if is_scale
        else "correct the offsets, strides and extents of the pieces",
    )


def _element(buffer: Region, spot: Spot) -> str:
    index = buffer.index(spot.address)
    return str(list(index)) if index is not None else f"at address {spot.address}"

"""Axes fit the world that they divide, and `at` names axes and coordinates that they have."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from tranship.schema import indexset
from tranship.schema.canonical import Path
from tranship.schema.expression import evaluate, parse, variables
from tranship.schema.indexset import IndexSetError
from tranship.schema.manifest import Axis, IntExpression, Manifest
from tranship.schema.mesh import RANK, axis_ranges
from tranship.schema.moves import grid_size, index_grid
from tranship.schema.nearest import nearest
from tranship.schema.rows import spread
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.subject import Subject
from tranship.schema.rules.world import World


def axes(manifest: Manifest) -> Iterator[Finding]:
    """Check the axes, the ranks, and the axes that `at` names."""
    yield from axes_fit(("axes",), manifest.axes, manifest.world_size)
    yield from _ranks(manifest)
    known = [axis.name for axis in manifest.axes]
    for path, at, _ in conditions(manifest):
        yield from axes_known(path, at, known)


def axes_fit(path: Path, all_axes: Sequence[Axis], world_size: int) -> Iterator[Finding]:
    """Find axes of which no rank has the last coordinate.

    Rank `stride * (size - 1)` is the first that has it. `size * stride` may be more than the
    world: then the last coordinates have fewer ranks than the others.
    """
    for number, axis in enumerate(all_axes):
        first = axis.stride * (axis.size - 1)
        if first >= world_size:
            yield Finding(
                "TS150",
                (*path, number),
                f"no rank has coordinate {axis.size - 1} on axis {axis.name!r}",
                expected=f"stride * (size - 1) < world_size, which is {world_size}",
                found=f"{axis.stride} * {axis.size - 1} = {first}",
            )


def _ranks(manifest: Manifest) -> Iterator[Finding]:
    if manifest.ranks is None:
        return
    try:
        last = indexset.parse(manifest.ranks)[-1]
    except IndexSetError:
        return
    if last >= manifest.world_size:
        yield Finding(
            "TS151",
            ("ranks",),
            f"rank {last} is outside the world",
            expected=f"ranks 0 to {manifest.world_size - 1}",
            found=manifest.ranks,
        )


def axes_known(path: Path, at: Iterable[str], known: list[str]) -> Iterator[Finding]:
    """Find keys of `at` that are neither an axis nor `rank`."""
    for name in at:
        if name not in known and name != RANK:
            close = nearest(name, [*known, RANK])
            yield Finding(
                "TS152",
                (*path, name),
                f"{name!r} is not an axis",
                expected=", ".join(dict.fromkeys([*known, RANK])),
                found=name,
                suggestion=close[0] if close else None,
            )


Condition = tuple[Path, Mapping[str, IntExpression], Mapping[str, str]]


def conditions(manifest: Manifest) -> Iterator[Condition]:
    """List every `at` with its path and the indices that it may read."""
    for number, buffer in enumerate(manifest.buffers):
        path = ("buffers", number)
        yield (*path, "at"), buffer.at, buffer.indices
        for kind, parts in (("pieces", buffer.pieces), ("fills", buffer.fills)):
            for place, part in enumerate(parts):
                indices = {**buffer.indices, **part.indices}
                yield (*path, kind, place, "at"), part.at, indices


def coordinates_exist(subject: Subject) -> Iterator[Finding]:
    """Find values of `at` that their axis does not have."""
    manifest = subject.manifest
    ranges = axis_ranges(manifest.axes, manifest.world_size)
    for path, at, indices in conditions(manifest):
        for axis, value in at.items():
            yield from _outside((*path, axis), value, indices, ranges[axis][1], subject.world)


def _outside(
    path: Path, value: IntExpression, indices: Mapping[str, str], last: int, world: World
) -> Iterator[Finding]:
    read = variables(parse(value))
    own = {name: text for name, text in indices.items() if name in read}
    grid, rows = index_grid(own), grid_size(own)
    values = spread(evaluate(parse(value), grid, world.tables), rows)
    wrong = np.flatnonzero((values < 0) | (values > last))
    if len(wrong):
        row = int(wrong[0])
        where = ", ".join(f"{name} {int(grid[name][row])}" for name in own)
        yield Finding(
            "TS153",
            path,
            f"{path[-1]} is {int(values[row])}" + (f" for {where}" if where else ""),
            expected=f"a coordinate from 0 to {last}",
            found=str(int(values[row])),
        )

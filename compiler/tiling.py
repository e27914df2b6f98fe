"""Which sender pieces fill the boxes of a receiver piece, exactly once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from tranship.compiler.draft import all_moves
from tranship.compiler.holder import instance_keys
from tranship.compiler.inputs import Inputs, draft_side
from tranship.schema.alike import Reader, kinds, reader
from tranship.schema.boxes import grow_to_cells
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expression import IntArray
from tranship.schema.manifest import Side
from tranship.schema.mesh import table_arrays
from tranship.schema.moves import Moves, edge_block, half_instances
from tranship.schema.plan import Edge, Half, Op


@dataclass(frozen=True)
class Group:
    """All edges that write one receiver half: together they must tile its boxes."""

    receiver: Half
    tensor: str
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class Sample:
    """One of each kind of a group's instances (`schema/alike.py`): all others are like these."""

    edges: tuple[Edge, ...]
    ranks: Mapping[Side, IntArray]


def groups(edges: Iterable[Edge]) -> tuple[Group, ...]:
    """Edges by the receiver half that they write, in the order given."""
    found: dict[str, list[Edge]] = {}
    for edge in edges:
        key = f"{edge.tensor} {edge.receiver.model_dump_json()}"
        found.setdefault(key, []).append(edge)
    return tuple(Group(part[0].receiver, part[0].tensor, tuple(part)) for part in found.values())


def tiling(
    inputs: Inputs, group: Group
) -> tuple[tuple[Edge, ...], tuple[Moves, ...], Diagnostic | None]:
    """Find the fewest edges of the group that tile what the receiver wants; drop last ones first.

    Returns the edges, the moves of a sample of each, and what is wrong if even all of them do not
    tile.
    """
    sample = sample_of(inputs, group.edges)
    edges, moves = list(group.edges), list(all_moves(inputs, sample.edges, sample.ranks))
    wanted = _wanted(inputs, sample)
    for number in reversed(range(len(edges))):
        rest = moves[:number] + moves[number + 1 :]
        if rest and _covered(wanted, rest):
            del edges[number], moves[number]
    complaint = None if _tiles(wanted, moves) else _tiling_problem(inputs, group, wanted, moves)
    return tuple(edges), tuple(moves), complaint


def sample_of(inputs: Inputs, edges: Sequence[Edge]) -> Sample:
    """Narrow edges into one receiver half to one of each kind of index value and rank."""
    meshes = {side: draft_side(inputs.manifest(side)) for side in Side}
    lookups = {side: table_arrays(mesh.tables) for side, mesh in meshes.items()}
    found = kinds([one for edge in edges for one in _readers(edge)], meshes, lookups)

    def narrowed(half: Half) -> Half:
        return half.model_copy(update={"indices": found.narrowed(half.indices)})

    small = tuple(
        edge.model_copy(
            update={
                "indices": found.narrowed(edge.indices),
                "sender": narrowed(edge.sender),
                "receiver": narrowed(edge.receiver),
            }
        )
        for edge in edges
    )
    return Sample(small, found.ranks)


def _readers(edge: Edge) -> Iterator[Reader]:
    for side, half in ((Side.SENDER, edge.sender), (Side.RECEIVER, edge.receiver)):
        boxes = (*half.start, *half.extent, *(half.origin or ()), *half.strides)
        yield reader(side, {**edge.indices, **half.indices}, half.at, boxes)


@dataclass(frozen=True)
class _Wanted:
    """Every instance of a receiver half, its volume and its index names."""

    names: tuple[str, ...]
    volume: dict[tuple[int, ...], int]


def _wanted(inputs: Inputs, sample: Sample) -> _Wanted:
    receiver = sample.edges[0].receiver
    names = (*sample.edges[0].indices, *receiver.indices)
    mesh, ranks = draft_side(inputs.receiver), sample.ranks[Side.RECEIVER]
    volume: dict[tuple[int, ...], int] = {}
    for edge in sample.edges:
        instances = half_instances(receiver, edge.indices, mesh, ranks)
        box, block = instances.box, edge_block(edge)
        if edge.op is Op.AMAX and block is not None:
            box = grow_to_cells(box, instances.origin, block, edge.shape)
        volume |= dict(zip(instance_keys(instances, names), box.volume.tolist(), strict=True))
    return _Wanted(names, volume)


def _written(
    wanted: _Wanted, moves: Sequence[Moves]
) -> dict[tuple[int, ...], list[tuple[Moves, int]]]:
    """The regions (as rows of moves) that reach every receiver instance."""
    found: dict[tuple[int, ...], list[tuple[Moves, int]]] = {key: [] for key in wanted.volume}
    for part in moves:
        for row, key in enumerate(instance_keys(part.receiver, wanted.names)):
            found[key].append((part, row))
    return found


def _covered(wanted: _Wanted, moves: Sequence[Moves]) -> bool:
    """Whether the regions are enough to fill every box: exact when they do not overlap."""
    return all(
        _distinct_volume(regions) == wanted.volume[key]
        for key, regions in _written(wanted, moves).items()
    )


def _tiles(wanted: _Wanted, moves: Sequence[Moves]) -> bool:
    for key, regions in _written(wanted, moves).items():
        total = sum(int(part.region.volume[row]) for part, row in regions)
        if total != wanted.volume[key] or _distinct_volume(regions) != total:
            return False
    return True


def _distinct_volume(regions: Sequence[tuple[Moves, int]]) -> int:
    """Number of different elements in a union of boxes, by cutting space at every face."""
    if len(regions) == 1:
        part, row = regions[0]
        return int(part.region.volume[row])
    if not regions:
        return 0
    if any(step != 1 for part, _ in regions for step in part.region.step):
        seen: set[tuple[int, ...]] = set()
        for part, row in regions:
            seen |= _elements(part, row)
        return len(seen)
    starts = np.stack([part.region.start[row] for part, row in regions])
    ends = starts + np.stack([part.region.extent[row] for part, row in regions])
    return _union_volume(starts, ends)


def _elements(part: Moves, row: int) -> set[tuple[int, ...]]:
    axes: list[range] = []
    for dim, step in enumerate(part.region.step):
        start = int(part.region.start[row, dim])
        axes.append(range(start, start + int(part.region.extent[row, dim]) * step, step))
    return set(product(*axes))


def _union_volume(starts: IntArray, ends: IntArray) -> int:
    if starts.shape[1] == 0:
        return 1
    faces: list[IntArray] = [np.unique(column) for column in np.concatenate([starts, ends]).T]
    filled = np.zeros([len(face) - 1 for face in faces], dtype=bool)
    windows: list[list[slice]] = [[] for _ in starts]
    for face, first, last in zip(faces, starts.T, ends.T, strict=True):
        for window, low, high in zip(
            windows, _places(face, first), _places(face, last), strict=True
        ):
            window.append(slice(low, high))
    for window in windows:
        filled[tuple(window)] = True
    volume: IntArray = filled.astype(np.int64)
    for dim, face in enumerate(faces):
        shape = [1] * len(faces)
        shape[dim] = -1
        volume = volume * np.diff(face).reshape(shape)
    return int(volume.sum())


def _places(face: IntArray, values: IntArray) -> list[int]:
    places: IntArray = np.searchsorted(face, values)
    return places.tolist()


def _tiling_problem(
    inputs: Inputs, group: Group, wanted: _Wanted, moves: Sequence[Moves]
) -> Diagnostic:
    """TS301 or TS302 for the first box that is not tiled."""
    for key, regions in _written(wanted, moves).items():
        total = sum(int(part.region.volume[row]) for part, row in regions)
        distinct = _distinct_volume(regions)
        where = ", ".join(f"{n} {v}" for n, v in zip(("rank", *wanted.names), key, strict=True))
        if distinct < wanted.volume[key]:
            return Diagnostic(
                code="TS301",
                message=f"the sender holds only part of {group.tensor} for {group.receiver.buffer}",
                at=inputs.at("receiver", receiver_pointer(inputs, group.receiver)),
                expected=f"{wanted.volume[key]} elements for receiver {where}",
                found=f"{distinct}",
                help="declare the sender's other shards, or correct their boxes",
            )
        if distinct != total:
            return Diagnostic(
                code="TS302",
                message=f"sender pieces of {group.tensor} overlap without being equal",
                at=inputs.at("receiver", receiver_pointer(inputs, group.receiver)),
                expected=f"{distinct} elements for receiver {where}",
                found=f"{total}, some of them twice",
                help="copies of a box must be the same box; declare a shared tensor as an alias",
            )
    raise AssertionError("a group that does not tile has a box that is not tiled")


def receiver_pointer(inputs: Inputs, half: Half) -> str:
    """Point to the buffer family that a receiver half belongs to."""
    names = [buffer.name for buffer in inputs.receiver.buffers]
    wanted = half.buffer
    return f"/buffers/{names.index(wanted)}" if wanted in names else "/buffers"

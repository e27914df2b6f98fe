"""Pass 3: cut the boxes of both sides with each other, and decide where blocks are quantized."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from tranship.compiler.holder import instance_keys
from tranship.compiler.inputs import Inputs, plan_side
from tranship.schema.boxes import contains, grow_to_cells
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.expression import IntArray
from tranship.schema.moves import Moves, edge_block, edge_moves, half_instances
from tranship.schema.plan import Edge, Half, Op, Place, Round, Seats, Slot, Staging, TransferPlan

BLANK_DIGEST = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Group:
    """All edges that write one receiver half: together they must tile its boxes."""

    receiver: Half
    tensor: str
    edges: tuple[Edge, ...]


def intersect(inputs: Inputs, edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """Keep the sender pieces that are needed, check that they tile, and place the quantization.

    Raises:
        DiagnosticError: TS301 elements that no sender piece holds, TS302 sender pieces that overlap
            and cannot be told apart, TS303 pieces of a scaled tensor that skip elements, TS304
            grids of blocks that start at different elements.
    """
    problems: list[Diagnostic] = []
    result: list[Edge] = []
    for group in groups(edges):
        kept, moves, complaint = _tiling(inputs, group)
        if complaint is not None:
            problems.append(complaint)
            continue
        misfit = _grid_problem(inputs, kept, moves)
        if misfit is not None:
            problems.append(misfit)
            continue
        result.extend(_placed(inputs, kept, moves))
    if problems:
        raise DiagnosticError(problems)
    return tuple(result)


def groups(edges: Iterable[Edge]) -> tuple[Group, ...]:
    """Edges by the receiver half that they write, in the order given."""
    found: dict[str, list[Edge]] = {}
    for edge in edges:
        key = f"{edge.tensor} {edge.receiver.model_dump_json()}"
        found.setdefault(key, []).append(edge)
    return tuple(Group(part[0].receiver, part[0].tensor, tuple(part)) for part in found.values())


def draft_plan(
    inputs: Inputs, edges: Sequence[Edge], schedule: Mapping[str, tuple[int, ...]] | None = None
) -> TransferPlan:
    """Hold `edges` in a plan, for reading their moves before it is complete."""
    return TransferPlan(
        format="tranship.plan/1",
        options=BLANK_DIGEST,
        sender=plan_side(inputs.sender),
        receiver=plan_side(inputs.receiver),
        staging=Staging(budget=0, slots=(Slot(offset=0, size=0),)),
        rounds=(Round(slot=0),),
        edges=tuple(edges),
        schedule=dict(schedule or {}),
        seats=seats(inputs),
    )


def seats(inputs: Inputs) -> Seats | None:
    """The placement's seats, as the plan repeats them for `nearest` edges."""
    placement = inputs.placement
    return Seats(sender=placement.sender, receiver=placement.receiver) if placement else None


def all_moves(
    inputs: Inputs, edges: Sequence[Edge], schedule: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[Moves, ...]:
    """Compute the moves of every edge, between all ranks."""
    plan = draft_plan(inputs, edges, schedule)
    return tuple(edge_moves(plan, number) for number in range(len(edges)))


def _tiling(
    inputs: Inputs, group: Group
) -> tuple[tuple[Edge, ...], tuple[Moves, ...], Diagnostic | None]:
    """The fewest edges of the group that tile the receiver's boxes, last ones dropped first."""
    edges, moves = list(group.edges), list(all_moves(inputs, group.edges))
    wanted = _wanted(inputs, group)
    for number in reversed(range(len(edges))):
        rest = moves[:number] + moves[number + 1 :]
        if rest and _covered(wanted, rest):
            del edges[number], moves[number]
    complaint = None if _tiles(wanted, moves) else _tiling_problem(inputs, group, wanted, moves)
    return tuple(edges), tuple(moves), complaint


@dataclass(frozen=True)
class _Wanted:
    """Every instance of a receiver half, its volume and its index names."""

    names: tuple[str, ...]
    volume: dict[tuple[int, ...], int]


def _wanted(inputs: Inputs, group: Group) -> _Wanted:
    names = (*group.edges[0].indices, *group.receiver.indices)
    volume: dict[tuple[int, ...], int] = {}
    for edge in group.edges:
        instances = half_instances(group.receiver, edge.indices, plan_side(inputs.receiver))
        volume |= dict(
            zip(instance_keys(instances, names), instances.box.volume.tolist(), strict=True)
        )
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
                at=inputs.at("receiver", _pointer(inputs, group)),
                expected=f"{wanted.volume[key]} elements for receiver {where}",
                found=f"{distinct}",
                help="declare the sender's other shards, or correct their boxes",
            )
        if distinct != total:
            return Diagnostic(
                code="TS302",
                message=f"sender pieces of {group.tensor} overlap without being equal",
                at=inputs.at("receiver", _pointer(inputs, group)),
                expected=f"{distinct} elements for receiver {where}",
                found=f"{total}, some of them twice",
                help="copies of a box must be the same box; declare a shared tensor as an alias",
            )
    raise AssertionError("a group that does not tile has a box that is not tiled")


def _pointer(inputs: Inputs, group: Group) -> str:
    names = [buffer.name for buffer in inputs.receiver.buffers]
    wanted = group.receiver.buffer
    return f"/buffers/{names.index(wanted)}" if wanted in names else "/buffers"


def _grid_problem(
    inputs: Inputs, edges: Sequence[Edge], moves: Sequence[Moves]
) -> Diagnostic | None:
    """TS303 for scaled pieces that skip elements, TS304 for copies between different grids."""
    for edge, part in zip(edges, moves, strict=True):
        if edge_block(edge) is None:
            continue
        if any(step != 1 for step in (*part.sender.box.step, *part.receiver.box.step)):
            return _misfit(
                inputs, edge, "TS303", "its pieces skip elements", "pieces without steps"
            )
        both = edge.sender.block is not None and edge.op is Op.COPY
        if both and not np.array_equal(part.sender.origin, part.receiver.origin):
            return _misfit(
                inputs, edge, "TS304", "the two grids start at different elements", "equal origins"
            )
    return None


def _misfit(inputs: Inputs, edge: Edge, code: str, what: str, expected: str) -> Diagnostic:
    return Diagnostic(
        code=code,
        message=f"the blocks of {edge.tensor} do not fit: {what}",
        at=inputs.at("receiver", _pointer(inputs, Group(edge.receiver, edge.tensor, (edge,)))),
        expected=expected,
        found=f"sender buffer {edge.sender.buffer}, receiver buffer {edge.receiver.buffer}",
        help="declare the grid as the software that made it counts blocks",
    )


def _placed(inputs: Inputs, edges: Sequence[Edge], moves: Sequence[Moves]) -> tuple[Edge, ...]:
    """Quantize where a block is whole: at the sender if every move's is, else at the receiver.

    Codes are half as many bytes on the wire as the values they stand for, so that the sender is
    the better place wherever both are possible. Where neither side sees a block whole, amax edges
    tell the receiver what it cannot see.
    """
    if edges[0].op not in (Op.QUANTIZE, Op.REQUANTIZE):
        return tuple(edges)
    if all(_whole_at_sender(edge, part) for edge, part in zip(edges, moves, strict=True)):
        return tuple(edges)
    late = tuple(edge.model_copy(update={"place": Place.RECEIVER}) for edge in edges)
    if all(_whole_at_receiver(edge, part) for edge, part in zip(edges, moves, strict=True)):
        return late
    bounds = tuple(
        edge.model_copy(update={"op": Op.AMAX, "place": Place.SENDER, "formula": None})
        for edge in edges
    )
    return (*bounds, *late)


def _whole_at_sender(edge: Edge, moves: Moves) -> bool:
    block = edge_block(edge)
    assert block is not None
    grown = grow_to_cells(moves.region, moves.receiver.origin, block, edge.shape)
    return bool(np.all(contains(moves.sender.box, grown)))


def _whole_at_receiver(edge: Edge, moves: Moves) -> bool:
    block = edge_block(edge)
    assert block is not None
    grown = grow_to_cells(moves.receiver.box, moves.receiver.origin, block, edge.shape)
    return bool(np.all(contains(moves.receiver.box, grown)))

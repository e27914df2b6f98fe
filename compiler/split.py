"""How a layer, or a tensor, that does not fit one round is divided over several."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import lcm

import numpy as np

from tranship.compiler.draft import all_moves
from tranship.compiler.fresh import window_index
from tranship.compiler.inputs import Inputs
from tranship.compiler.usage import Usage, usage_of
from tranship.schema import indexset
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expression import IntArray
from tranship.schema.manifest import IntExpression
from tranship.schema.moves import edge_block
from tranship.schema.plan import Edge, Window
from tranship.schema.template import parse_template


@dataclass(frozen=True)
class Part:
    """What dividing adds to an edge: rounds `first` on, chosen by `term`, and a window."""

    first: int
    term: str = ""
    indices: dict[str, str] = field(default_factory=dict[str, str])
    window: Window | None = None


@dataclass(frozen=True)
class Division:
    """Rounds that one layer takes, and every edge's part in them; or why it cannot be divided."""

    rounds: int
    parts: dict[int, Part]
    problem: Diagnostic | None = None


@dataclass(frozen=True)
class _Cut:
    """One tensor's own rounds: their number, and the part of each of its edges but for `first`."""

    rounds: int
    parts: dict[int, Part]


def divide(
    inputs: Inputs, edges: Sequence[Edge], chosen: Sequence[int], usage: Usage, capacity: int
) -> Division:
    """Spread the edges of one layer (the largest decides for all) over as few rounds as fit.

    Whole tensors share a round while they fit; a tensor that does not fit has rounds of its own.
    """
    parts: dict[int, Part] = {}
    number, used = 0, usage.nothing()
    for members in _tensors(edges, chosen):
        load = _worst(edges, members, usage)
        if int(load.max(initial=0)) <= capacity:
            if int((used + load).max(initial=0)) > capacity:
                number, used = number + 1, usage.nothing()
            used = used + load
            parts |= {n: Part(number) for n in members}
            continue
        cut = _cut(inputs, edges, members, usage, capacity)
        if isinstance(cut, Diagnostic):
            return Division(0, {}, cut)
        number += int(bool(used.any()))
        parts |= {n: _shifted(part, number) for n, part in cut.parts.items()}
        number, used = number + cut.rounds, usage.nothing()
    return Division(number + int(bool(used.any())), parts)


def _shifted(part: Part, first: int) -> Part:
    return Part(first, part.term, part.indices, part.window)


def _tensors(edges: Sequence[Edge], chosen: Sequence[int]) -> list[list[int]]:
    """Edges by tensor: those of one tensor must share their rounds."""
    found: dict[tuple[str, ...], list[int]] = {}
    for number in chosen:
        found.setdefault(parse_template(edges[number].tensor).texts, []).append(number)
    return list(found.values())


def _worst(edges: Sequence[Edge], members: Sequence[int], usage: Usage) -> IntArray:
    """The largest load of every rank over all values of the first index."""
    if not edges[members[0]].indices:
        return usage.of(members)
    name = next(iter(edges[members[0]].indices))
    values = {v for n in members for v in indexset.parse(edges[n].indices[name])}
    return np.max([usage.of_layer(members, value) for value in values], axis=0)


def _cut(
    inputs: Inputs, edges: Sequence[Edge], members: Sequence[int], usage: Usage, capacity: int
) -> _Cut | Diagnostic:
    """Divide one tensor: by its second index if that is enough, else by windows of rows."""
    first = edges[members[0]]
    names = list(first.indices)
    if len(names) < 2:
        return _windows(inputs, edges, members, capacity, "", 1)
    second = names[1]
    top = max(v for n in members for v in indexset.parse(edges[n].indices[names[1]])) + 1
    for per in range(top - 1, 0, -1):
        if -(-top // per) == -(-top // (per + 1)):
            continue
        if _fits(edges, members, usage, capacity, per):
            term = second if per == 1 else f"{second} // {per}"
            return _Cut(-(-top // per), {n: Part(0, term) for n in members})
    return _windows(inputs, edges, members, capacity, second, top)


def _fits(
    edges: Sequence[Edge], members: Sequence[int], usage: Usage, capacity: int, per: int
) -> bool:
    """Whether every group of `per` values of the second index fits, in every layer."""
    loads: dict[tuple[int, int], IntArray] = {}
    for number in members:
        first, second = list(usage.edges[number].indices.values())[:2]
        keys = np.stack([first, second // per], axis=1)
        unique, inverse = np.unique(keys, axis=0, return_inverse=True)
        for group, key in enumerate(unique.tolist()):
            rows = np.flatnonzero(inverse.reshape(-1) == group)
            place = (key[0], key[1])
            loads[place] = loads.get(place, usage.nothing()) + usage.of_rows(number, rows)
    return all(int(load.max()) <= capacity for load in loads.values())


def _windows(
    inputs: Inputs,
    edges: Sequence[Edge],
    members: Sequence[int],
    capacity: int,
    second: str,
    top: int,
) -> _Cut | Diagnostic:
    """Windows of whole blocks over one dim: the dim that needs fewest, the first of equals.

    Across the dim that the senders' shards cut, every window keeps all senders busy.
    """
    chosen = [edges[n] for n in members]
    found = [
        cut
        for dim in range(len(chosen[0].shape))
        if (cut := _fewest_windows(inputs, chosen, dim, capacity)) is not None
    ]
    if not found:
        return _too_large(inputs, chosen[0], capacity)
    window = window_index(inputs)
    cut = min(found, key=lambda windowed: len(indexset.parse(windowed[0].indices[window])))
    count = len(indexset.parse(cut[0].indices[window]))
    term = f"{second} * {count} + {window}" if second else window
    parts = {
        n: Part(0, term, {window: edge.indices[window]}, edge.window)
        for n, edge in zip(members, cut, strict=True)
    }
    return _Cut(top * count, parts)


def _fewest_windows(
    inputs: Inputs, edges: Sequence[Edge], dim: int, capacity: int
) -> list[Edge] | None:
    """The edges with the fewest windows over `dim` that fit, or None if no number does."""
    unit = _unit(edges, dim)
    size = edges[0].shape[dim]
    count = 1
    while unit and count * unit < size:
        count += max(1, count // 4)
        width = -(-size // (count * unit)) * unit
        cut = [_windowed(edge, dim, width, window_index(inputs)) for edge in edges]
        if _windows_fit(inputs, cut, capacity):
            return cut
    return None


def _unit(edges: Sequence[Edge], dim: int) -> int:
    """Elements of `dim` that must stay together, for whole blocks; 0 if a grid is shifted."""
    unit = 1
    for edge in edges:
        block = edge_block(edge)
        if block is None:
            continue
        if edge.receiver.origin and edge.receiver.origin[dim] != 0:
            return 0
        unit = lcm(unit, block[dim])
    return unit


def _windowed(edge: Edge, dim: int, width: int, name: str) -> Edge:
    count = -(-edge.shape[dim] // width)
    start: list[IntExpression] = [0 for _ in edge.shape]
    start[dim] = f"{name} * {width}"
    extent = [width if d == dim else size for d, size in enumerate(edge.shape)]
    window = Window(start=tuple(start), extent=tuple(extent))
    indices = {**edge.indices, name: f"0..{count - 1}"}
    return edge.model_copy(update={"window": window, "indices": indices})


def _windows_fit(inputs: Inputs, edges: Sequence[Edge], capacity: int) -> bool:
    """Whether every window fits a slot, together with all that shares its round.

    A round is told by the first two indices and the window; later indices share it.
    """
    usage = usage_of(inputs, edges, all_moves(inputs, edges))
    loads: dict[tuple[int, ...], IntArray] = {}
    for number, edge in enumerate(usage.edges):
        *tensor, window = edge.indices.values()
        keys = np.stack([*tensor[:2], window], axis=1)
        unique, inverse = np.unique(keys, axis=0, return_inverse=True)
        for group, key in enumerate(unique.tolist()):
            rows = np.flatnonzero(inverse.reshape(-1) == group)
            place = tuple(key)
            loads[place] = loads.get(place, usage.nothing()) + usage.of_rows(number, rows)
    return all(int(load.max()) <= capacity for load in loads.values())


def _too_large(inputs: Inputs, edge: Edge, capacity: int) -> Diagnostic:
    return Diagnostic(
        code="TS501",
        message=f"{edge.tensor} does not fit the staging memory, even in windows of whole blocks",
        at=inputs.at("transfer", "/options/staging_bytes"),
        expected="rounds that fit half of staging_bytes",
        found=f"{capacity} bytes a round, for a tensor of shape {list(edge.shape)}",
        help="raise staging_bytes in the transfer file",
    )

"""Which edges of two plans move the same tensors: the pairs that are to be compared."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.compiler.diffs.listing import Listed, distinct, listed, nothing_like
from tranship.compiler.diffs.rows import ONE, row_codes
from tranship.schema.expression import IntArray
from tranship.schema.plan import Edge
from tranship.schema.template import parse_template


@dataclass(frozen=True)
class Cell:
    """Tensors that the same edges move: their numbers `[n, k]`, and positions of the edges."""

    numbers: IntArray
    old: tuple[int, ...]
    new: tuple[int, ...]


def cells(old: Sequence[Edge], new: Sequence[Edge]) -> Iterator[Cell]:
    """Divide all tensors by the edges that move them before and after."""
    before, after = _tensors(old), _tensors(new)
    for texts in [*after, *(texts for texts in before if texts not in after)]:
        one = before.get(texts) or nothing_like(after[texts])
        other = after.get(texts) or nothing_like(one)
        yield from _divided(one, other)


def _tensors(edges: Sequence[Edge]) -> dict[tuple[str, ...], Listed]:
    rows = [ONE.all_rows().join(edge.indices, {})[1] for edge in edges]
    return listed([edge.tensor for edge in edges], rows)


def _divided(one: Listed, other: Listed) -> Iterator[Cell]:
    numbers = np.concatenate([one.numbers, other.numbers])
    _, place = np.unique(row_codes(numbers), return_inverse=True)
    place = place.reshape(-1)
    edges = [*(("old", n) for n in np.unique(one.family).tolist())]
    edges += [("new", n) for n in np.unique(other.family).tolist()]
    held = np.zeros((int(place.max(initial=-1)) + 1, len(edges)), dtype=np.int64)
    ends = {
        "old": (one.family, place[: len(one.rank)]),
        "new": (other.family, place[len(one.rank) :]),
    }
    for column, (end, number) in enumerate(edges):
        family, places = ends[end]
        held[places[family == number], column] = 1
    patterns = row_codes(held)
    for pattern in dict.fromkeys(patterns.tolist()):
        chosen = np.flatnonzero(patterns == pattern)
        present = [edge for edge, flag in zip(edges, held[chosen[0]], strict=True) if flag]
        yield Cell(
            distinct(numbers[np.isin(place, chosen)]),
            tuple(number for end, number in present if end == "old"),
            tuple(number for end, number in present if end == "new"),
        )


Pair = tuple[int | None, int | None]


def pairs(cell: Cell, old: Sequence[Edge], new: Sequence[Edge]) -> Iterator[Pair]:
    """Pair the edges of a cell that are most alike; one without a like has None beside it."""
    first, second = list(cell.old), list(cell.new)
    for alike in _ALIKE:
        for number in list(first):
            twin = next((n for n in second if alike(old[number], new[n])), None)
            if twin is not None:
                first.remove(number)
                second.remove(twin)
                yield number, twin
    yield from ((number, None) for number in first)
    yield from ((None, number) for number in second)


def _same_text(one: Edge, other: Edge) -> bool:
    return one.model_copy(update={"indices": {}}) == other.model_copy(update={"indices": {}})


def _same_buffers(one: Edge, other: Edge) -> bool:
    return _ends(one) == _ends(other) and one.op == other.op and one.window == other.window


def _same_op(one: Edge, other: Edge) -> bool:
    return _ends(one) == _ends(other) and one.op == other.op


def _same_receiver(one: Edge, other: Edge) -> bool:
    return _ends(one)[1] == _ends(other)[1] and (one.op == "amax") == (other.op == "amax")


def _ends(edge: Edge) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return parse_template(edge.sender.buffer).texts, parse_template(edge.receiver.buffer).texts


def _same_stage(one: Edge, other: Edge) -> bool:
    return (one.op == "amax") == (other.op == "amax")


_ALIKE: tuple[Callable[[Edge, Edge], bool], ...] = (
    _same_text,
    _same_buffers,
    _same_op,
    _same_receiver,
    _same_stage,
)
"""Ways in which edges are alike, the closest first."""

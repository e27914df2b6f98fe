"""Staging bytes that edges need, by rank and by layer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.compiler.inputs import Inputs
from tranship.schema.expression import IntArray
from tranship.schema.moves import Moves
from tranship.schema.plan import Edge
from tranship.schema.wire import payload


@dataclass(frozen=True)
class EdgeUsage:
    """Per move of one edge: the two ranks' columns, the bytes, the values of its indices."""

    sender: IntArray
    receiver: IntArray
    size: IntArray
    indices: dict[str, IntArray]
    region_start: IntArray


@dataclass(frozen=True)
class Usage:
    """Bytes by rank: a load is an int64 array with a column for every sender, then receiver."""

    edges: tuple[EdgeUsage, ...]
    sender_world: int
    columns: int

    def nothing(self) -> IntArray:
        """The load of no edge."""
        return np.zeros(self.columns, dtype=np.int64)

    def of(self, numbers: Iterable[int]) -> IntArray:
        """The load of whole edges."""
        load = self.nothing()
        for number in numbers:
            self._add(load, self.edges[number], slice(None))
        return load

    def of_layer(self, numbers: Iterable[int], value: int) -> IntArray:
        """The load of edges at one value of their first index."""
        load = self.nothing()
        for number in numbers:
            edge = self.edges[number]
            first = next(iter(edge.indices.values()))
            self._add(load, edge, np.flatnonzero(first == value))
        return load

    def of_rows(self, number: int, rows: IntArray) -> IntArray:
        """The load of some moves of one edge."""
        load = self.nothing()
        self._add(load, self.edges[number], rows)
        return load

    def senders(self, load: IntArray) -> bytes:
        """A signature of the sender ranks that a load touches."""
        return (load[: self.sender_world] > 0).tobytes()

    @staticmethod
    def _add(load: IntArray, edge: EdgeUsage, rows: IntArray | slice) -> None:
        np.add.at(load, edge.sender[rows], edge.size[rows])
        np.add.at(load, edge.receiver[rows], edge.size[rows])


def usage_of(inputs: Inputs, edges: Sequence[Edge], moves: Sequence[Moves]) -> Usage:
    """Count the bytes of all moves."""
    world = inputs.sender.world_size
    parts = tuple(_edge_usage(edge, part, world) for edge, part in zip(edges, moves, strict=True))
    return Usage(parts, world, world + inputs.receiver.world_size)


def _edge_usage(edge: Edge, moves: Moves, sender_world: int) -> EdgeUsage:
    return EdgeUsage(
        sender=moves.sender.rank,
        receiver=moves.receiver.rank + sender_world,
        size=payload(edge, moves).padded,
        indices={name: moves.receiver.environment[name] for name in edge.indices},
        region_start=moves.region.start,
    )

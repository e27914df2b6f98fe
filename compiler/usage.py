"""Staging bytes that edges need, by rank and by index value."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.compiler.draft import draft_plan
from tranship.compiler.inputs import Inputs
from tranship.schema.expression import IntArray
from tranship.schema.flows import add_at, received, sent, stream
from tranship.schema.plan import Edge
from tranship.schema.rows import number_rows

Indices = Mapping[str, IntArray]
"""The values of some indices, `[n]` each."""


@dataclass(frozen=True)
class End:
    """What ranks of one side send or receive: `n` rows of bytes, by rank and index values."""

    column: IntArray
    size: IntArray
    indices: dict[str, IntArray]


@dataclass(frozen=True)
class Usage:
    """Bytes by rank: a load is an int64 array with a column for every sender, then receiver.

    `ends` has the two ends of every edge, by the edge's number.
    """

    ends: tuple[tuple[End, End], ...]
    sender_world: int
    columns: int

    def table(self, numbers: Sequence[int], rows: int, row: Callable[[End], IntArray]) -> IntArray:
        """Loads of edges, `[rows, columns]`: `row` gives the row of the table for what is sent."""
        table = np.zeros((rows, self.columns), dtype=np.int64)
        for number in numbers:
            for end in self.ends[number]:
                add_at(table, row(end), end.column, end.size)
        return table

    def of(self, numbers: Sequence[int]) -> IntArray:
        """The load of whole edges together, `[columns]`."""
        return self.table(numbers, 1, lambda end: np.zeros_like(end.size))[0]

    def most(self) -> int:
        """The largest load of one rank at one assignment of the indices that are told apart."""
        every = [end for ends in self.ends for end in ends]
        names = list(every[0].indices)
        columns = [np.concatenate([end.indices[name] for end in every]) for name in names]
        columns.append(np.concatenate([end.column for end in every]))
        size = np.concatenate([end.size for end in every])
        total = np.zeros(len(size), dtype=np.int64)
        np.add.at(total, number_rows(columns, len(size)), size)
        return int(total.max(initial=0))

    def senders(self, load: IntArray) -> bytes:
        """A signature of the sender ranks that a load touches."""
        return (load[: self.sender_world] > 0).tobytes()


def usage_of(inputs: Inputs, edges: Sequence[Edge], apart: Collection[str]) -> Usage:
    """Count the bytes of all edges; values of the indices in `apart` are told apart."""
    plan, world = draft_plan(inputs, ()), inputs.sender.world_size
    ends: list[tuple[End, End]] = []
    for edge in edges:
        names = [name for name in edge.indices if name in apart]
        part = stream(plan, edge, names)
        labels = [part.environment[name] for name in names]
        source, target = sent(plan, edge, part, labels), received(part, labels)
        ends.append(
            (
                End(source.rank, source.size, dict(zip(names, source.labels, strict=True))),
                End(target.rank + world, target.size, dict(zip(names, target.labels, strict=True))),
            )
        )
    return Usage(tuple(ends), world, world + inputs.receiver.world_size)

"""The members of families as arrays: a row for every member on every rank that has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema import indexset
from tranship.schema.expression import IntArray, evaluate, parse
from tranship.schema.manifest import IntExpression
from tranship.schema.records import Ints
from tranship.schema.template import parse_template


@dataclass(frozen=True)
class Rows:
    """Members on ranks: what every index, axis and `rank` is, [count] each, and the tables."""

    values: Mapping[str, IntArray]
    count: int
    lookup: Mapping[str, IntArray]

    def join(
        self, indices: Mapping[str, str], at: Mapping[str, IntExpression]
    ) -> tuple[IntArray, "Rows"]:
        """Repeat the rows for every assignment of `indices` under which `at` holds.

        Returns:
            The position of the row that each new row repeats, and the new rows.
        """
        outer = {name: values[:, np.newaxis] for name, values in self.values.items()}
        sets = [np.array(indexset.parse(text), dtype=np.int64) for text in indices.values()]
        grids = [grid.reshape(-1) for grid in np.meshgrid(*sets, indexing="ij")]
        size = len(grids[0]) if grids else 1
        inner = dict(zip(indices, grids, strict=True))
        environment = {**outer, **inner}
        holds = np.ones((self.count, size), dtype=np.bool_)
        for axis, expression in at.items():
            holds &= outer[axis] == evaluate(parse(expression), environment, self.lookup)
        repeated, cells = np.nonzero(holds)
        values = {name: values[repeated] for name, values in self.values.items()}
        values |= {name: values[cells] for name, values in inner.items()}
        return repeated, Rows(values, len(repeated), self.lookup)

    def take(self, chosen: IntArray) -> "Rows":
        """Keep the rows at these positions."""
        values = {name: values[chosen] for name, values in self.values.items()}
        return Rows(values, len(chosen), self.lookup)

    def array(self, expressions: Sequence[IntExpression]) -> IntArray:
        """Evaluate expressions, to int64 of shape [count, expressions]."""
        result = np.empty((self.count, len(expressions)), dtype=np.int64)
        for position, expression in enumerate(expressions):
            result[:, position] = evaluate(parse(expression), self.values, self.lookup)
        return result

    def ints(self, expressions: Sequence[IntExpression]) -> list[Ints]:
        """Evaluate expressions, to one tuple per row."""
        return [tuple(row) for row in self.array(expressions).tolist()]

    def names(self, text: str) -> list[str]:
        """Fill a name template, once per row."""
        template = parse_template(text)
        holes = [evaluate(hole, self.values, self.lookup) for hole in template.holes]
        names = [template.texts[0]] * self.count
        for hole, literal in zip(holes, template.texts[1:], strict=True):
            numbers = np.broadcast_to(np.asarray(hole), (self.count,)).tolist()
            names = [f"{name}{n}{literal}" for name, n in zip(names, numbers, strict=True)]
        return names

"""Names and rows of a plan, and where the declaration has the same."""

from collections.abc import Mapping

import numpy as np

from tranship.compiler.proofs.declared import column
from tranship.schema.expression import IntArray, Value, evaluate
from tranship.schema.template import parse_template


def names_of(
    text: str, environment: Mapping[str, Value], lookup: Mapping[str, IntArray], rows: int
) -> list[str]:
    """Fill a name template for every row of the environment."""
    template = parse_template(text)
    names = [template.texts[0]] * rows
    for hole, literal in zip(template.holes, template.texts[1:], strict=True):
        values = np.broadcast_to(np.asarray(evaluate(hole, environment, lookup)), (rows,))
        names = [
            f"{name}{value}{literal}" for name, value in zip(names, values.tolist(), strict=True)
        ]
    return names


def padded(values: IntArray, dims: int, padding: int) -> IntArray:
    """`[n, d]` with columns of `padding` added on the right, up to `dims`."""
    missing = dims - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=padding) if missing else values


def positions(wanted: IntArray, known: IntArray) -> IntArray:
    """The row of `known` that equals each row of `wanted`; -1 for none."""
    number = {key: row for row, key in enumerate(_keys(known))}
    return column(number.get(key, -1) for key in _keys(wanted))


def pairs(left: IntArray, right: IntArray) -> tuple[IntArray, IntArray]:
    """All pairs (row of `left`, row of `right`) with equal keys, ordered by row of `left`."""
    order = np.argsort(right, kind="stable")
    low = np.searchsorted(right, left, side="left", sorter=order)
    count = np.searchsorted(right, left, side="right", sorter=order) - low
    row = np.repeat(np.arange(len(left)), count)
    before = np.cumsum(count) - count
    return row, order[np.arange(len(row)) - before[row] + low[row]]


def _keys(rows: IntArray) -> list[bytes]:
    size = rows.dtype.itemsize * rows.shape[1]
    whole = np.ascontiguousarray(rows).tobytes()
    return [whole[start : start + size] for start in range(0, len(whole), size)]

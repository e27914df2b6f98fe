"""Names as keys: the text around the numbers of a name, and the numbers.

Two families have the same names wherever they have the same texts and numbers, whichever of the
numbers an index counts and whichever are spelled out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.schema.expression import IntArray, evaluate
from tranship.schema.template import Template, parse_template

Texts = tuple[str, ...]
"""The texts before, between and after the numbers of a name."""

NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,17})(?![0-9])")
"""A number in a name; others, such as 007, are text."""
_LARGEST = 10**18


@dataclass(frozen=True)
class NameKeys:
    """The names of some rows that have the same texts: positions `rows` `[n]`, numbers `[n, k]`."""

    texts: Texts
    rows: IntArray
    numbers: IntArray


def name_keys(
    name: str, values: Mapping[str, IntArray], count: int, lookup: Mapping[str, IntArray]
) -> list[NameKeys]:
    """Split the names of `count` rows, whose indices are `values`, into texts and numbers.

    Raises:
        ExpressionError: a hole has no value.
        TemplateError: the name does not parse.
    """
    template = parse_template(name)
    holes = [
        np.broadcast_to(np.asarray(evaluate(hole, values, lookup), dtype=np.int64), (count,))
        for hole in template.holes
    ]
    if _stands_apart(template) and all(_is_plain(hole) for hole in holes):
        return [_at_once(template, holes, count)]
    return _one_by_one(template, holes, count)


def _stands_apart(template: Template) -> bool:
    """Whether no hole touches a digit or another hole."""
    inner = template.texts[1:-1]
    before = (text[-1:] for text in template.texts[:-1])
    after = (text[:1] for text in template.texts[1:])
    return all(inner) and not any(c.isdecimal() and c.isascii() for c in (*before, *after))


def _is_plain(hole: IntArray) -> bool:
    return not len(hole) or (int(hole.min()) >= 0 and int(hole.max()) < _LARGEST)


def _at_once(template: Template, holes: Sequence[IntArray], count: int) -> NameKeys:
    texts: list[str] = []
    numbers: list[IntArray] = []
    for place, literal in enumerate(template.texts):
        parts = NUMBER.split(literal)
        if place:
            numbers.append(holes[place - 1])
        texts += parts[::2]
        numbers += [np.full(count, int(number), dtype=np.int64) for number in parts[1::2]]
    matrix = np.stack(numbers, axis=1) if numbers else np.zeros((count, 0), dtype=np.int64)
    return NameKeys(tuple(texts), np.arange(count, dtype=np.int64), matrix)


def _one_by_one(template: Template, holes: Sequence[IntArray], count: int) -> list[NameKeys]:
    found: dict[Texts, tuple[list[int], list[list[int]]]] = {}
    columns = [hole.tolist() for hole in holes]
    for row in range(count):
        name = template.texts[0]
        for column, literal in zip(columns, template.texts[1:], strict=True):
            name += f"{column[row]}{literal}"
        parts = NUMBER.split(name)
        rows, numbers = found.setdefault(tuple(parts[::2]), ([], []))
        rows.append(row)
        numbers.append([int(part) for part in parts[1::2]])
    return [
        NameKeys(
            texts,
            np.array(rows, dtype=np.int64),
            np.array(numbers, dtype=np.int64).reshape(len(rows), len(texts) - 1),
        )
        for texts, (rows, numbers) in found.items()
    ]


def name_columns(
    name: str, values: Mapping[str, IntArray], count: int, lookup: Mapping[str, IntArray]
) -> tuple[list[Texts], IntArray, IntArray]:
    """Return all texts that occur, which of them every row has `[n]`, and its numbers `[n, k]`.

    Rows with fewer numbers than others are filled up with -1.
    """
    groups = name_keys(name, values, count, lookup)
    width = max((group.numbers.shape[1] for group in groups), default=0)
    which = np.zeros(count, dtype=np.int64)
    numbers = np.full((count, width), -1, dtype=np.int64)
    for position, group in enumerate(groups):
        which[group.rows] = position
        numbers[group.rows, : group.numbers.shape[1]] = group.numbers
    return [group.texts for group in groups], which, numbers

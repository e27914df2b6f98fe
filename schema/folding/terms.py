"""Sums of terms: how fitted expressions, and the tables in them, are put together.

A table has no name while expressions are fitted, because families share tables. Until then a
lookup carries its table's content as its name, a `TableDraft` in text form.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from tranship.schema.expression import (
    Constant,
    Expression,
    Lookup,
    Operation,
    Value,
    Variable,
    evaluate,
    simplify,
    tables,
)
from tranship.schema.folding.names import free_name
from tranship.schema.mesh import table_arrays


@dataclass(frozen=True, slots=True)
class Term:
    """`factor * base`; `order` is the position of the term's input among all inputs."""

    order: int
    factor: int
    base: Expression


@dataclass(frozen=True, slots=True)
class Sum:
    """A constant and terms."""

    constant: int
    terms: tuple[Term, ...] = ()

    def plus(self, term: Term) -> "Sum":
        """Add one term."""
        return replace(self, terms=(*self.terms, term))


def sum_expression(total: Sum) -> Expression:
    """Write a sum: what is added before what is subtracted, each by `order`, the constant last.

    A positive constant leads where it is all that is added: `4096 - fsdp * 171`.
    """
    ordered = sorted(total.terms, key=lambda term: term.order)
    added = [_product(term.base, term.factor) for term in ordered if term.factor > 0]
    taken = [_product(term.base, -term.factor) for term in ordered if term.factor < 0]
    constant = total.constant
    if not added and (constant > 0 or not taken):
        added, constant = [Constant(constant)], 0
    if not added:
        first, *rest = [term for term in ordered if term.factor < 0]
        added = [_product(first.base, first.factor)]
        taken = [_product(term.base, -term.factor) for term in rest]
    result, *others = added
    for other in others:
        result = Operation("+", result, other)
    for other in taken:
        result = Operation("-", result, other)
    if constant:
        result = Operation("+" if constant > 0 else "-", result, Constant(abs(constant)))
    return result


def _product(base: Expression, factor: int) -> Expression:
    return simplify(Operation("*", base, Constant(factor)))


@dataclass(frozen=True, slots=True)
class TableDraft:
    """A table without a name: its known entries, and the length that its index needs."""

    label: str
    size: int
    entries: tuple[tuple[int, int], ...]

    def values(self) -> tuple[int, ...]:
        """All entries: one that nothing reads repeats the one before it, or else the first."""
        known = dict(self.entries)
        filled = [known.get(0, self.entries[0][1])]
        for position in range(1, self.size):
            filled.append(known.get(position, filled[-1]))
        return tuple(filled)


def lookup_draft(draft: TableDraft, name: str) -> Expression:
    """Look the variable `name` up in a table that has no name yet."""
    return Lookup(json.dumps([draft.label, draft.size, draft.entries]), Variable(name))


def _read_draft(text: str) -> TableDraft:
    label, size, entries = json.loads(text)
    return TableDraft(label, size, tuple((index, value) for index, value in entries))


def complexity(expression: Expression) -> tuple[int, int]:
    """Count the known entries of the tables in a fitted expression, and its operations."""
    match expression:
        case Lookup(table, index):
            entries, operations = complexity(index)
            return entries + len(_read_draft(table).entries), operations
        case Operation(_, left, right):
            one, two = complexity(left), complexity(right)
            return one[0] + two[0], one[1] + two[1] + 1
        case _:
            return 0, 0


def evaluate_draft(expression: Expression, environment: Mapping[str, Value]) -> Value:
    """Evaluate an expression whose tables have no names yet."""
    drafts = {text: _read_draft(text).values() for text in tables(expression)}
    return evaluate(expression, environment, table_arrays(drafts))


def name_tables(
    expressions: Iterable[Expression], taken: Collection[str]
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Name the drafts in `expressions`: their final names by draft text, and the tables.

    A draft joins the first table of its label whose known entries do not contradict its own.
    """
    joined: list[TableDraft] = []
    places: dict[str, int] = {}
    for expression in expressions:
        for text in sorted(tables(expression)):
            if text not in places:
                places[text] = _join(joined, _read_draft(text))
    names: list[str] = []
    for draft in joined:
        names.append(free_name(draft.label, {*taken, *names}))
    contents = {name: draft.values() for name, draft in zip(names, joined, strict=True)}
    return {text: names[place] for text, place in places.items()}, contents


def _join(joined: list[TableDraft], draft: TableDraft) -> int:
    for place, other in enumerate(joined):
        known = dict(other.entries)
        if other.label == draft.label and all(
            known.get(index, value) == value for index, value in draft.entries
        ):
            entries = tuple(sorted({**known, **dict(draft.entries)}.items()))
            joined[place] = TableDraft(draft.label, max(other.size, draft.size), entries)
            return place
    joined.append(draft)
    return len(joined) - 1


def rename_tables(expression: Expression, names: Mapping[str, str]) -> Expression:
    """Replace the drafts in `expression` by the names of their tables."""
    match expression:
        case Lookup(table, index):
            return Lookup(names[table], rename_tables(index, names))
        case Operation(symbol, left, right):
            return Operation(symbol, rename_tables(left, names), rename_tables(right, names))
        case _:
            return expression

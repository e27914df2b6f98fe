"""What mutation operators are made of: drawing parts of a plan, and changing them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tranship.schema import indexset
from tranship.schema.manifest import IntExpression
from tranship.schema.plan import Half, TransferPlan

T = TypeVar("T")
Mutation = Callable[[TransferPlan, DataObject], TransferPlan | None]
Entries = tuple[IntExpression, ...]


@dataclass(frozen=True)
class Operator:
    """A mutation, and the codes by which its harmful mutants may be refused."""

    name: str
    mutate: Mutation
    codes: frozenset[str]
    always: bool


def operator(*codes: str, always: bool = False) -> Callable[[Mutation], Operator]:
    """Make an operator of a mutation."""
    return lambda mutate: Operator(
        mutate.__name__, mutate, frozenset({"TS602", *codes}), always=always
    )


def pick(data: DataObject, items: Sequence[T]) -> T | None:
    """Draw one of some items; None if there are none."""
    return data.draw(st.sampled_from(items)) if items else None


def with_edge(plan: TransferPlan, number: int, **fields: object) -> TransferPlan:
    """The plan with fields of an edge changed."""
    return replaced(plan, "edges", number, plan.edges[number].model_copy(update=fields))


def replaced(plan: TransferPlan, field: str, number: int, item: object) -> TransferPlan:
    """The plan with one of its items replaced."""
    items = list(getattr(plan, field))
    items[number] = item
    return plan.model_copy(update={field: tuple(items)})


def without(plan: TransferPlan, field: str, number: int) -> TransferPlan:
    """The plan without one of its items."""
    items = list(getattr(plan, field))
    del items[number]
    return plan.model_copy(update={field: tuple(items)})


def draw_half(plan: TransferPlan, data: DataObject) -> tuple[int, str, Half]:
    """One half of one edge: the edge's number, the side, the half."""
    number = data.draw(st.integers(0, len(plan.edges) - 1))
    side = data.draw(st.sampled_from(["sender", "receiver"]))
    half: Half = getattr(plan.edges[number], side)
    return number, side, half


def with_half(plan: TransferPlan, number: int, side: str, **fields: object) -> TransferPlan:
    """The plan with fields of one half changed."""
    half: Half = getattr(plan.edges[number], side)
    return with_edge(plan, number, **{side: half.model_copy(update=fields)})


def plus(value: IntExpression, by: int) -> IntExpression:
    """An expression plus a constant."""
    return value + by if isinstance(value, int) else f"{value} + {by}".replace("+ -", "- ")


def with_one_moved(entries: Entries, data: DataObject, by: int) -> Entries | None:
    """The entries with one of them moved."""
    if not entries:
        return None
    dim = data.draw(st.integers(0, len(entries) - 1))
    return (*entries[:dim], plus(entries[dim], by), *entries[dim + 1 :])


def distance(data: DataObject) -> int:
    """Draw how far to move something."""
    return data.draw(st.sampled_from([-4, -3, -2, -1, 1, 2, 3, 4]))


def exchanged(entries: tuple[T, ...], data: DataObject) -> tuple[T, ...]:
    """The entries with two of them swapped."""
    if len(entries) < 2:
        return entries
    first, second = data.draw(st.permutations(range(len(entries))))[:2]
    swapped = list(entries)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return tuple(swapped)


def without_one(indices: dict[str, str], data: DataObject) -> dict[str, str] | None:
    """An index set without one of its members."""
    names = [name for name, text in indices.items() if len(indexset.parse(text)) > 1]
    if not names:
        return None
    name = data.draw(st.sampled_from(names))
    members = indexset.parse(indices[name])
    left = data.draw(st.sampled_from(members))
    return {**indices, name: indexset.to_text(set(members) - {left})}

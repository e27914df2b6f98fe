"""A plan narrowed to one of each kind is refused exactly if the whole plan is.

Narrowing must never accept what looking at everything would refuse; the other way round it would
refuse plans that are right.
"""

from functools import cache

import pytest
from hypothesis import HealthCheck, assume, given, note, reject, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.compiler.large_pairs import large_pairs
from tests.compiler.value_mutants import VALUE_MUTATIONS, Mutation
from tests.compiler.verdicts import Transfer, narrowed_verdict, whole_verdict
from tests.mutants.cases import CASES
from tests.mutants.operators import OPERATORS
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.proofs.units import units
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.moves import grid_size
from tranship.schema.plan import TransferPlan
from tranship.schema.testing import Limits, transfers
from tranship.schema.testing.transfers import RandomTransfer

MUTANTS = 4
"""Mutants of every plan that is drawn."""

MUTATIONS: tuple[Mutation, ...] = (
    *VALUE_MUTATIONS,
    *VALUE_MUTATIONS,
    *(operator.mutate for operator in OPERATORS),
)

modest = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _compiled(transfer: Transfer) -> TransferPlan:
    return compile_transfer(
        transfer.sender,
        transfer.receiver,
        transfer.policy,
        transfer.placement,
        transfer.options,
    )


def _assert_one_verdict(plan: TransferPlan, transfer: Transfer) -> None:
    narrowed, whole = narrowed_verdict(plan, transfer), whole_verdict(plan, transfer)
    assert bool(narrowed) == bool(whole), (narrowed, whole)


def _assert_mutants_agree(
    plan: TransferPlan, transfer: Transfer, data: DataObject, times: int = MUTANTS
) -> None:
    for _ in range(times):
        mutate = data.draw(st.sampled_from(MUTATIONS))
        mutant = mutate(plan, data)
        if mutant is not None and mutant != plan:
            note(f"{mutate.__name__}: {_difference(plan, mutant)}")
            _assert_one_verdict(mutant, transfer)


def _difference(plan: TransferPlan, mutant: TransferPlan) -> str:
    fields = ("edges", "fills", "derived", "schedule", "rounds")
    return str(
        [
            (one, two)
            for field in fields
            for one, two in zip(getattr(plan, field), getattr(mutant, field), strict=False)
            if one != two
        ]
    )


@settings(modest, max_examples=60)
@given(transfer=large_pairs(), data=st.data())
def test_mutants_of_plans_over_many_indices(transfer: Transfer, data: DataObject) -> None:
    plan = _compiled(transfer)
    assert narrowed_verdict(plan, transfer) == whole_verdict(plan, transfer) == []
    _assert_mutants_agree(plan, transfer, data)


@settings(modest, max_examples=40)
@given(drawn=transfers(Limits(ranks=12, layers=6)), data=st.data())
def test_mutants_of_any_plans(drawn: RandomTransfer, data: DataObject) -> None:
    transfer = Transfer(drawn.sender, drawn.receiver, drawn.options, drawn.policy, drawn.placement)
    try:
        plan = _compiled(transfer)
    except DiagnosticError as error:
        if {found.code for found in error.diagnostics} != {"TS501"}:
            raise
        reject()
    assume(plan.edges)
    assert narrowed_verdict(plan, transfer) == whole_verdict(plan, transfer) == []
    _assert_mutants_agree(plan, transfer, data)


@cache
def _case(number: int) -> tuple[TransferPlan, Transfer]:
    case = CASES[number]()
    transfer = Transfer(case.sender, case.receiver, case.options, case.policy, case.placement)
    return _compiled(transfer), transfer


@settings(modest, max_examples=60)
@given(number=st.integers(0, len(CASES) - 1), data=st.data())
def test_mutants_of_each_way_to_be_wrong(number: int, data: DataObject) -> None:
    _assert_mutants_agree(*_case(number), data)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[make.__name__ for make in CASES])
def test_each_case_is_proved_either_way(number: int) -> None:
    plan, transfer = _case(number)
    assert narrowed_verdict(plan, transfer) == whole_verdict(plan, transfer) == []


def test_layers_and_experts_are_narrowed() -> None:
    """That verdicts agree proves nothing if nothing is left out."""
    names = [make.__name__ for make in CASES]
    for name, seen in (("copies", 4), ("experts", 16), ("derived", 4)):
        plan, transfer = _case(names.index(name))
        found = [
            grid_size(unit.plan.edges[number].indices)
            for unit in units(plan, transfer.sender, transfer.receiver)
            for number in unit.edges
        ]
        assert sum(found) == seen < sum(grid_size(edge.indices) for edge in plan.edges)

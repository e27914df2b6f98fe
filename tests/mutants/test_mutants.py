"""Every mutant of a plan that would do harm is refused, and for a reason that fits the mutation.

Whether a mutant does harm is for the interpreter to say: the receivers end up with other values
than by the plan as compiled, or the run would hang, write twice, or overwrite what may still be
read.
Each operator must have done harm: a suite that never bites proves nothing.
"""

from functools import cache

import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.mutants.cases import CASES
from tests.mutants.editing import Operator
from tests.mutants.operators import OPERATORS
from tests.mutants.subject import Subject, assert_delivers, subject_of

EXAMPLES = 30
"""Mutants per operator."""

ENOUGH = 3
"""Harmful mutants per operator after which those that are refused anyway are not run any more."""


@cache
def subject(number: int) -> Subject:
    return subject_of(CASES[number]())


names = [make.__name__ for make in CASES]
numbers = pytest.mark.parametrize("number", range(len(CASES)), ids=names)


@numbers
def test_a_plan_as_compiled_is_proved(number: int) -> None:
    assert subject(number).verify(subject(number).plan) == ()


@numbers
def test_a_plan_as_compiled_delivers_what_is_declared(number: int) -> None:
    assert_delivers(subject(number))


ROUNDS = 5


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_every_harmful_mutant_is_refused(operator: Operator) -> None:
    harmful = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(number=st.integers(0, len(CASES) - 1), data=st.data())
    def judge(number: int, data: DataObject) -> None:
        nonlocal harmful
        chosen = subject(number)
        mutant = operator.mutate(chosen.plan, data)
        assume(mutant is not None and mutant != chosen.plan)
        assert mutant is not None
        codes = {found.code for found in chosen.verify(mutant)}
        fits = bool(codes & operator.codes)
        if fits and harmful >= ENOUGH:
            return
        harms = operator.always or chosen.harms(mutant)
        harmful += harms
        note(f"{chosen.case.name}: {sorted(codes)}")
        assert fits or not harms

    # Few mutants of some operators do harm: chance may leave them all out, but not time and again.
    for _ in range(ROUNDS):
        judge()
        if harmful:
            return
    pytest.fail("no mutant did harm")

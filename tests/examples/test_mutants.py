"""Mutants of every example's plan that would do harm are refused, for a reason that fits.

Mutants of the shrunk plans are judged by running them, as in `tests/mutants`; those of the
committed plans, too large for that, by a sample of what they write, and by staging memory.
"""

import os
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.examples.catalog import EXAMPLES, Full, load_full
from tests.examples.sampling import Sample
from tests.examples.small import SIZES, small
from tests.mutants.editing import Operator
from tests.mutants.operators import OPERATORS
from tests.mutants.subject import Subject, subject_of
from tranship.compiler.verify import digests_of, verify
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.plan import TransferPlan

MUTANTS = int(os.environ.get("TRANSHIP_EXAMPLE_MUTANTS", "1"))
"""Mutants per operator and plan, of which every example has two: its own and a shrunk one."""

TRIES = 5
"""Draws after which an operator is taken to find nothing to change."""

Found = tuple[Diagnostic, ...]

each = pytest.mark.parametrize("name", SIZES)
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.name)


class Sampled:
    """A committed example, with what its plan does to a sample of cells of the outermost ranks."""

    def __init__(self, full: Full) -> None:
        self.full = full
        self.sample = Sample(full.case, sorted({0, full.case.receiver.world_size - 1}))
        self.effects = self.sample.effects(full.plan)

    def verify(self, plan: TransferPlan) -> Found:
        case = self.full.case
        inputs = (case.sender, case.receiver, case.policy, case.placement)
        digests = digests_of(*inputs, case.options)
        return verify(plan, *inputs, digests=digests, options=case.options)

    def harms(self, mutant: TransferPlan) -> bool:
        try:
            return bool(self.sample.faults(mutant)) or self.sample.effects(mutant) != self.effects
        except (ValueError, LookupError, TypeError, OverflowError):
            return True


@cache
def shrunk(name: str) -> Subject:
    return subject_of(small(name).case)


@cache
def committed(name: str) -> Sampled:
    return Sampled(load_full(EXAMPLES / f"{name}.transfer.toml"))


@each
def test_the_committed_plan_writes_what_is_declared(name: str) -> None:
    chosen = committed(name)
    assert chosen.sample.faults(chosen.full.plan) == set()
    for cell, effects in zip(chosen.sample.cells, chosen.effects, strict=True):
        ((effect, times),) = effects.items()
        assert (effect.tensor, effect.element, times) == (cell.tensor, cell.element, 1)


@each
@every_operator
def test_a_harmful_mutant_of_the_shrunk_plan_is_refused(name: str, operator: Operator) -> None:
    chosen = shrunk(name)
    _try_mutants(operator, chosen.plan, chosen.verify, chosen.harms)


@each
@every_operator
def test_a_harmful_mutant_of_the_committed_plan_is_refused(name: str, operator: Operator) -> None:
    chosen = committed(name)
    _try_mutants(operator, chosen.full.plan, chosen.verify, chosen.harms)


def _try_mutants(
    operator: Operator,
    plan: TransferPlan,
    judge: Callable[[TransferPlan], Found],
    harms: Callable[[TransferPlan], bool],
) -> None:
    """Judge some mutants; those that are refused for a fitting reason are not run."""
    calls = 0

    @settings(
        max_examples=1 + MUTANTS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(data=st.data())
    def judged(data: DataObject) -> None:
        nonlocal calls
        calls += 1
        mutant = _mutant(operator, plan, data)
        if mutant is not None and calls > 1:  # the first draw is the simplest one, always the same
            codes = {found.code for found in judge(mutant)}
            note(f"{sorted(codes)}")
            assert codes & operator.codes or not (operator.always or harms(mutant))

    judged()


def _mutant(operator: Operator, plan: TransferPlan, data: DataObject) -> TransferPlan | None:
    for _ in range(TRIES):
        mutant = operator.mutate(plan, data)
        if mutant is not None and mutant != plan:
            return mutant
    return None

"""Every mutant of a plan that would do harm is refused, and for a reason that fits the mutation.

Whether a mutant does harm is for the interpreter to say: the receivers end up with other values
than by the plan as compiled, or the run would hang, write twice, or overwrite what may still be
read.
Each operator must have done harm: a suite that never bites proves nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.mutants.cases import CASES, Case
from tests.mutants.editing import Operator
from tests.mutants.interpreter import Outcome, run
from tests.mutants.memory import Memory, Value, Values, addresses, blank, held, indices
from tests.mutants.operators import OPERATORS
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.schema.boxes import resolve_block
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expand import expand
from tranship.schema.plan import TransferPlan
from tranship.schema.records import BufferRecord, Declaration, Ints, PieceRecord

EXAMPLES = 30
"""Mutants per operator."""

ENOUGH = 3
"""Harmful mutants per operator after which those that are refused anyway are not run any more."""


@dataclass(frozen=True)
class Subject:
    """A case with its plan, its memory, and what the plan does."""

    case: Case
    plan: TransferPlan
    receiver: Declaration
    memory: tuple[Memory, Memory]
    values: Values
    outcome: Outcome

    def verify(self, plan: TransferPlan) -> tuple[Diagnostic, ...]:
        """Judge a plan by the case's inputs."""
        case = self.case
        inputs = (case.sender, case.receiver, case.policy, case.placement)
        digests = digests_of(*inputs, case.options)
        return verify(plan, *inputs, digests=digests, options=case.options)

    def run(self, plan: TransferPlan) -> Outcome:
        """Run a plan on the case's memory."""
        return run(plan, *self.memory, self.receiver, self.values)

    def harms(self, mutant: TransferPlan) -> bool:
        """Whether a mutant does what the plan does not."""
        outcome = self.run(mutant)
        return bool(outcome.faults) or outcome.result != self.outcome.result


@cache
def subject(number: int) -> Subject:
    case = CASES[number]()
    plan = compile_transfer(case.sender, case.receiver, case.policy, case.placement, case.options)
    values, receiver = Values(), expand(case.receiver)
    memory = held(expand(case.sender), values), blank(receiver, values)
    outcome = run(plan, *memory, receiver, values)
    return Subject(case, plan, receiver, memory, values, outcome)


names = [make.__name__ for make in CASES]
numbers = pytest.mark.parametrize("number", range(len(CASES)), ids=names)


@numbers
def test_a_plan_as_compiled_is_proved(number: int) -> None:
    assert subject(number).verify(subject(number).plan) == ()


@numbers
def test_a_plan_as_compiled_delivers_what_is_declared(number: int) -> None:
    chosen = subject(number)
    assert chosen.outcome.faults == frozenset()
    made = {number: value for value, number in chosen.values.numbers.items()}
    shapes = {tensor.name: tensor.shape for tensor in chosen.receiver.tensors}
    roots = {tensor.name: tensor.tied_to or tensor.name for tensor in chosen.receiver.tensors}
    for buffer in chosen.receiver.buffers:
        cells = chosen.outcome.result[buffer.rank, buffer.name]
        for piece in buffer.pieces if buffer.encoding.kind != "scale" else ():
            elements = indices(piece.start, piece.extent, piece.step).tolist()
            at: list[int] = addresses(piece.offset, piece.extent, piece.strides).tolist()
            for element, address in zip(elements, at, strict=True):
                assert _source(made, cells[address]) == (roots[piece.tensor], *element)
                kind, *_, amax = made[cells[address]]
                if kind[0] == "encoded":
                    bounded: frozenset[int] = made[amax][1]
                    seen = {_source(made, source) for source in bounded}
                    block = _block(buffer, piece, element, shapes[piece.tensor])
                    assert seen == {(roots[piece.tensor], *other) for other in block}


def _source(made: dict[int, Value], number: int) -> Value:
    """The tensor and the logical element that a value was made from."""
    while made[number][0] not in ("value", "code"):
        number = made[number][1]
    return made[number][2:]


def _block(
    buffer: BufferRecord, piece: PieceRecord, element: list[int], shape: Ints
) -> Iterator[Ints]:
    """All elements of the tensor in the block of one of them, by the receiver's grid."""
    sizes = resolve_block(buffer.encoding.block, shape)
    first = [(k - o) // n * n + o for k, o, n in zip(element, piece.origin, sizes, strict=True)]
    ranges = zip(first, sizes, shape, strict=True)
    return product(*(range(max(a, 0), min(a + n, size)) for a, n, size in ranges))


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

    judge()
    assert harmful >= 1

"""A case with its plan, its memory, and what the plan does: what mutants are compared with."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tests.mutants.declare import Case
from tests.mutants.interpreter import Outcome, run
from tests.mutants.memory import Memory, Value, Values, addresses, blank, held, indices
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.schema.boxes import resolve_block
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expand import expand
from tranship.schema.manifest import Part
from tranship.schema.plan import TransferPlan
from tranship.schema.records import BufferRecord, Declaration, Ints, PieceRecord


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


def subject_of(case: Case) -> Subject:
    """Compile a case, and run its plan."""
    plan = compile_transfer(case.sender, case.receiver, case.policy, case.placement, case.options)
    values, receiver = Values(), expand(case.receiver)
    memory = held(expand(case.sender), values), blank(receiver, values)
    outcome = run(plan, *memory, receiver, values)
    return Subject(case, plan, receiver, memory, values, outcome)


def assert_delivers(subject: Subject) -> None:
    """Assert that every receiver holds the declared elements, each code and scale by its block.

    Raises:
        AssertionError: a cell holds something else.
    """
    assert subject.outcome.faults == frozenset()
    reader = _Reader(subject)
    for buffer in subject.receiver.buffers:
        cells = subject.outcome.result[buffer.rank, buffer.name]
        for piece in buffer.pieces:
            elements = indices(piece.start, piece.extent, piece.step).tolist()
            at: list[int] = addresses(piece.offset, piece.extent, piece.strides).tolist()
            check = reader.check_scale if piece.part is Part.SCALE else reader.check_value
            for element, address in zip(elements, at, strict=True):
                check(buffer, piece, tuple(element), cells[address])


class _Reader:
    """Reads what cells were made from."""

    def __init__(self, subject: Subject) -> None:
        receiver = subject.receiver
        self._made = {number: value for value, number in subject.values.numbers.items()}
        self._bounded: dict[int, frozenset[Value]] = {}
        self._blocks: dict[Value, frozenset[Value]] = {}
        self._shapes = {tensor.name: tensor.shape for tensor in receiver.tensors}
        self._roots = {tensor.name: tensor.tied_to or tensor.name for tensor in receiver.tensors}
        encodings = {(b.rank, b.name): b.encoding for b in receiver.buffers}
        self._grids = {place: code.block for place, code in encodings.items() if code.block}

    def check_value(
        self, buffer: BufferRecord, piece: PieceRecord, element: Ints, cell: int
    ) -> None:
        """Assert that a cell has its element, quantized by the amax of exactly its block."""
        assert self._source(cell) == (self._roots[piece.tensor], *element)
        kind, *_, amax = self._made[cell]
        if kind[0] == "encoded":
            block = resolve_block(buffer.encoding.block, self._shapes[piece.tensor])
            number = tuple(
                (k - o) // n for k, o, n in zip(element, piece.origin, block, strict=True)
            )
            assert self._seen(amax) == self._block(piece, number, block)

    def check_scale(
        self, buffer: BufferRecord, piece: PieceRecord, number: Ints, cell: int
    ) -> None:
        """Assert that a cell has the scale of its block: made of its amax, or passed through."""
        kind, *rest = self._made[cell]
        if kind == "scale":
            assert tuple(rest[1:]) == (self._roots[piece.tensor], *piece.origin, *number)
            return
        assert kind[0] == "scale"
        grid = self._grids[buffer.rank, buffer.encoding.of]
        block = resolve_block(grid, self._shapes[piece.tensor])
        assert self._seen(rest[0]) == self._block(piece, number, block)

    def _source(self, number: int) -> Value:
        """The tensor and the logical element that a value was made from."""
        while self._made[number][0] not in ("value", "code"):
            number = self._made[number][1]
        return self._made[number][2:]

    def _seen(self, amax: int) -> frozenset[Value]:
        """The elements over which an amax was taken."""
        if amax not in self._bounded:
            cells: frozenset[int] = self._made[amax][1]
            self._bounded[amax] = frozenset(self._source(cell) for cell in cells)
        return self._bounded[amax]

    def _block(self, piece: PieceRecord, number: Ints, sizes: Ints) -> frozenset[Value]:
        """All elements of the tensor in one block of the receiver's grid."""
        key = (piece.tensor, piece.origin, number, sizes)
        if key not in self._blocks:
            root, shape = self._roots[piece.tensor], self._shapes[piece.tensor]
            first = [n * k + o for n, k, o in zip(sizes, number, piece.origin, strict=True)]
            self._blocks[key] = frozenset((root, *e) for e in _elements(first, sizes, shape))
        return self._blocks[key]


def _elements(first: list[int], sizes: Ints, shape: Ints) -> Iterator[Ints]:
    ranges = zip(first, sizes, shape, strict=True)
    return product(*(range(max(a, 0), min(a + n, size)) for a, n, size in ranges))

"""An interpreter of plans, in numpy and plain Python: the oracle for mutated plans.

It runs the moves of a plan round by round on memory whose elements say where they come from
(`memory.py`), so that a result tells not only whether the right element arrived, but also over
which elements the amax of its block was taken. Beside that it notes what no result shows: elements
written twice, reads and writes outside of buffers, rounds that wait for ever, messages that do not
fit their slot, and staging memory that is overwritten while it may still be read.

It knows nothing of the verifier. What the two share is the meaning of a plan: `schema/moves.py` and
`schema/wire.py`.
"""

from dataclasses import dataclass, field

import numpy as np

from tests.mutants.ends import End, ends_of, fill_places, step_places
from tests.mutants.memory import Buffer, Cells, Memory, Site, Values, addresses, indices
from tests.mutants.staging import staging_faults
from tranship.schema.dtypes import DType
from tranship.schema.moves import Moves, edge_moves
from tranship.schema.plan import Edge, Op, Place, TransferPlan
from tranship.schema.records import Declaration, Ints
from tranship.schema.wire import payload

BoxKey = tuple[Site, int, Ints, Ints]
"""A receiver's box: its buffer, offset, start and extent."""

Result = dict[Site, tuple[int, ...]]


@dataclass(frozen=True)
class Outcome:
    """What the receivers hold after a step, and what went wrong on the way."""

    result: Result
    faults: frozenset[str]


@dataclass
class _Batch:
    """Values that arrive for one receiver box in one round and window, to be quantized."""

    edge: Edge
    end: End
    elements: list[Cells] = field(default_factory=list[Cells])
    cells: list[Cells] = field(default_factory=list[Cells])


@dataclass
class _Machine:
    plan: TransferPlan
    sender: Memory
    receiver: Memory
    aliases: dict[Site, str]
    values: Values
    faults: set[str] = field(default_factory=set[str])

    def read(self, memory: Memory, place: Site, dtype: DType, at: Cells) -> Cells:
        """The elements at some addresses; what is not there is read as if it were something."""
        buffer = memory.get(place)
        if buffer is None or np.any((at < 0) | (at >= len(buffer.cells))):
            self.faults.add("reads outside of a buffer")
            return np.array([self.values.number("nothing", place, k) for k in at.tolist()])
        cells = buffer.cells[at]
        return cells if dtype == buffer.dtype else self.values.apply(("read as", dtype), cells)

    def write(self, place: Site, dtype: DType, at: Cells, cells: Cells) -> None:
        """Store elements at some addresses."""
        buffer = self.receiver.get(place)
        if buffer is None or np.any((at < 0) | (at >= len(buffer.cells))):
            self.faults.add("writes outside of a buffer")
            return
        if dtype != buffer.dtype:
            cells = self.values.apply(("written as", dtype), cells)
        buffer.cells[at] = cells
        np.add.at(buffer.writes, at, 1)


def run(
    plan: TransferPlan, sender: Memory, receiver: Memory, known: Declaration, values: Values
) -> Outcome:
    """Run a plan.

    Args:
        plan: What to run.
        sender: The senders' memory.
        receiver: The receivers' memory; it is left as it is.
        known: The receiver's declaration, for its aliases.
        values: What numbers the values, the same for all runs that are to be compared.
    """
    copied = {
        place: Buffer(buffer.dtype, buffer.cells.copy(), np.zeros_like(buffer.cells))
        for place, buffer in receiver.items()
    }
    aliases = {(b.rank, b.name): b.role.of for b in known.buffers if b.role.kind == "alias"}
    machine = _Machine(plan, sender, copied, aliases, values)
    try:
        _run(machine)
    except (ValueError, LookupError, TypeError, OverflowError, AssertionError) as error:
        machine.faults.add(f"has no meaning: {type(error).__name__}")
    if any(np.any(buffer.writes > 1) for buffer in copied.values()):
        machine.faults.add("writes twice")
    result = {place: tuple(buffer.cells.tolist()) for place, buffer in copied.items()}
    return Outcome(result, frozenset(machine.faults))


def _run(machine: _Machine) -> None:
    plan = machine.plan
    moves = [edge_moves(plan, number) for number in range(len(plan.edges))]
    machine.faults |= staging_faults(plan, moves)
    for number in range(len(plan.rounds)):
        _fills(machine, number)
        now = [part.take(np.flatnonzero(part.round == number)) for part in moves]
        bounds: dict[BoxKey, dict[Ints, set[int]]] = {}
        batches: dict[tuple[object, ...], _Batch] = {}
        for edge, part in zip(plan.edges, now, strict=True):
            if edge.op is Op.AMAX:
                _bound(machine, edge, part, bounds)
        for edge, part in zip(plan.edges, now, strict=True):
            if edge.op is not Op.AMAX:
                _deliver(machine, edge, part, batches)
        for batch in batches.values():
            _quantize_batch(machine, batch, bounds.get(_box(batch.end), {}))
        _derive(machine, number)


def _box(end: End) -> BoxKey:
    return end.place, end.offset, end.start, end.extent


def _grouped(numbers: Cells) -> dict[Ints, Cells]:
    """Rows by block."""
    groups: dict[Ints, list[int]] = {}
    for row, number in enumerate(numbers.tolist()):
        groups.setdefault(tuple(number), []).append(row)
    return {number: np.array(rows) for number, rows in groups.items()}


def _read(machine: _Machine, edge: Edge, end: End, elements: Cells, *, raw: bool) -> Cells:
    """A sender's elements: as they are, or what they stand for."""
    cells = machine.read(machine.sender, end.place, edge.sender.dtype, end.address(elements))
    if raw or end.scale is None:
        return cells
    assert edge.sender.scale is not None
    at = end.scale.address(end.blocks(elements))
    scales = machine.read(machine.sender, end.scale.place, edge.sender.scale.dtype, at)
    return machine.values.apply("decoded", cells, scales)


def _bound(
    machine: _Machine, edge: Edge, moves: Moves, bounds: dict[BoxKey, dict[Ints, set[int]]]
) -> None:
    if edge.place is Place.RECEIVER and len(moves.round):
        machine.faults.add("bounds at the receiver")
    for sender, receiver, region in ends_of(machine.plan, edge, moves):
        elements = indices(*region)
        cells = _read(machine, edge, sender, elements, raw=False)
        known = bounds.setdefault(_box(receiver), {})
        for number, rows in _grouped(receiver.blocks(elements)).items():
            known.setdefault(number, set()).update(cells[rows].tolist())


def _deliver(
    machine: _Machine, edge: Edge, moves: Moves, batches: dict[tuple[object, ...], _Batch]
) -> None:
    sent = payload(edge, moves)
    quantizes = edge.op in (Op.QUANTIZE, Op.REQUANTIZE)
    if edge.op is Op.DEQUANTIZE and edge.place is Place.RECEIVER and len(moves.round):
        machine.faults.add("decodes at the receiver")
    if quantizes and edge.formula is None and len(moves.round):
        machine.faults.add("quantizes by no formula")
    for row, (sender, receiver, region) in enumerate(ends_of(machine.plan, edge, moves)):
        elements = indices(*region)
        blocks = indices(
            tuple(sent.blocks[row].tolist()),
            tuple(sent.block_counts[row].tolist()),
            (1,) * len(edge.shape),
        )
        if quantizes and edge.place is Place.RECEIVER:
            key = (_box(receiver), receiver.window, edge.formula)
            batch = batches.setdefault(key, _Batch(edge, receiver))
            batch.elements.append(elements)
            batch.cells.append(_read(machine, edge, sender, elements, raw=False))
        elif quantizes:
            _quantize_move(machine, edge, sender, receiver, elements, blocks)
        else:
            _pass(machine, edge, sender, receiver, elements)
            if edge.op is Op.COPY and receiver.scale is not None:
                _pass_scales(machine, edge, sender, receiver, blocks)


def _pass(machine: _Machine, edge: Edge, sender: End, receiver: End, elements: Cells) -> None:
    cells = _read(machine, edge, sender, elements, raw=edge.op is not Op.DEQUANTIZE)
    if edge.op is not Op.COPY:
        cells = machine.values.apply(("rounded", edge.receiver.dtype), cells)
    elif edge.sender.dtype != edge.receiver.dtype:
        cells = machine.values.apply(("copied as", edge.receiver.dtype), cells)
    machine.write(receiver.place, edge.receiver.dtype, receiver.address(elements), cells)


def _pass_scales(machine: _Machine, edge: Edge, sender: End, receiver: End, blocks: Cells) -> None:
    assert sender.scale
    assert receiver.scale
    assert edge.sender.scale
    assert edge.receiver.scale
    shift = (np.array(receiver.origin) - np.array(sender.origin)) // np.array(sender.block)
    at = sender.scale.address(blocks + shift)
    cells = machine.read(machine.sender, sender.scale.place, edge.sender.scale.dtype, at)
    if edge.sender.scale.dtype != edge.receiver.scale.dtype:
        cells = machine.values.apply(("copied as", edge.receiver.scale.dtype), cells)
    place = receiver.scale
    machine.write(place.place, edge.receiver.scale.dtype, place.address(blocks), cells)


def _quantize_move(
    machine: _Machine, edge: Edge, sender: End, receiver: End, elements: Cells, blocks: Cells
) -> None:
    """Quantize a region by what its sender holds of its blocks."""
    own = indices(sender.start, sender.extent, sender.step)
    cells = _read(machine, edge, sender, own, raw=False)
    amax = {
        number: _amax(machine, cells[rows].tolist())
        for number, rows in _grouped(receiver.blocks(own)).items()
    }
    sent = _read(machine, edge, sender, elements, raw=False)
    _store(machine, edge, receiver, elements, sent, amax)
    _store_scales(machine, edge, receiver, blocks, amax)


def _quantize_batch(machine: _Machine, batch: _Batch, bounds: dict[Ints, set[int]]) -> None:
    """Quantize all that arrived for a box, by its own amaxes or by those that were sent."""
    elements, cells = np.concatenate(batch.elements), np.concatenate(batch.cells)
    low, high = elements.min(axis=0, initial=2**40), elements.max(axis=0, initial=-1)
    if len(elements) != np.prod(high - low + 1):
        machine.faults.add("quantizes what is no box")
    groups = _grouped(batch.end.blocks(elements))
    amax = {
        number: _amax(machine, bounds.get(number, ()) if bounds else cells[rows].tolist())
        for number, rows in groups.items()
    }
    _store(machine, batch.edge, batch.end, elements, cells, amax)
    _store_scales(machine, batch.edge, batch.end, np.array(list(groups)), amax)


def _amax(machine: _Machine, cells: list[int] | set[int] | tuple[int, ...]) -> int:
    return machine.values.number("amax", frozenset(cells))


def _store(
    machine: _Machine, edge: Edge, end: End, elements: Cells, cells: Cells, amax: dict[Ints, int]
) -> None:
    bounds = np.array([amax[tuple(n)] for n in end.blocks(elements).tolist()], dtype=np.int64)
    codes = machine.values.apply(("encoded", edge.formula, edge.receiver.dtype), cells, bounds)
    machine.write(end.place, edge.receiver.dtype, end.address(elements), codes)


def _store_scales(
    machine: _Machine, edge: Edge, end: End, blocks: Cells, amax: dict[Ints, int]
) -> None:
    if end.scale is None or edge.receiver.scale is None:
        return
    kind = ("scale", edge.formula, edge.receiver.dtype, edge.receiver.scale.dtype)
    bounds = np.array([amax[tuple(number)] for number in blocks.tolist()], dtype=np.int64)
    scales = machine.values.apply(kind, bounds)
    machine.write(end.scale.place, edge.receiver.scale.dtype, end.scale.address(blocks), scales)


def _fills(machine: _Machine, number: int) -> None:
    for fill in machine.plan.fills if number == 0 else ():
        for place, offset, sizes, strides in fill_places(machine.plan.receiver, fill):
            at = addresses(offset, sizes, strides)
            cells = np.full(len(at), machine.values.number("fill", fill.value))
            machine.write(place, fill.dtype, at, cells)


def _derive(machine: _Machine, number: int) -> None:
    """Run the recipes of a round: what they make depends on all that their inputs hold now."""
    for step in machine.plan.derived:
        if step.after == number:
            for place, inputs in step_places(machine.plan.receiver, step):
                read = tuple(_contents(machine, (place[0], name)) for name in inputs)
                made = machine.values.number("made", step.recipe, read)
                if place not in machine.receiver:
                    machine.faults.add("derives no buffer")
                    continue
                cells = machine.receiver[place].cells
                machine.receiver[place].cells = machine.values.apply(made, np.arange(len(cells)))


def _contents(machine: _Machine, place: Site) -> tuple[int, ...]:
    while place in machine.aliases:
        place = (place[0], machine.aliases[place])
    if place not in machine.receiver:
        machine.faults.add("derives from no buffer")
        return ()
    return tuple(machine.receiver[place].cells.tolist())

"""Proof 2: every element of every transfer buffer is written exactly once, with the right value.

Axioms: the declared pieces and fills; that a tied tensor has the value of the one it is tied to.

- The pieces and fills that a manifest declares for a transfer buffer fill its memory exactly once.
- What the plan writes into a receiver buffer fills its memory exactly once. Writes are the moved
  regions, the blocks whose scales are written, and the fills; regions that a declared reason
  excuses count as written. A region's addresses come from the declared piece. Scales travel with
  the moves, or, where the receiver quantizes, are written once for every block of its piece.
- A moved region lies within the declared piece that is read and within the one that is written.
- The sender's tensor is the receiver's own, or tied to it.

"Exactly once" is one exact identity per buffer (`tiling.py`), for strides of any kind.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tranship.compiler.proofs.declared import Declared, Pieces, distinct
from tranship.compiler.proofs.evidence import Case, Evidence
from tranship.compiler.proofs.locate import element_text, holding, meaning
from tranship.compiler.proofs.reading import Reading
from tranship.compiler.proofs.report import and_more, at, at_edge, box_text, refuse
from tranship.compiler.proofs.tiling import Regions, differences
from tranship.compiler.proofs.writes import Write, writes
from tranship.schema.diagnostics import Diagnostic, Location
from tranship.schema.expression import IntArray
from tranship.schema.plan import Op
from tranship.schema.records import BufferRecord


def prove_coverage(case: Case) -> Iterator[Diagnostic]:
    """Yield TS610 to TS615."""
    for evidence in case.units:
        yield from _covered(evidence)


def _covered(evidence: Evidence) -> Iterator[Diagnostic]:
    for known in (evidence.sender, evidence.receiver):
        yield from _declared_once(known)
    for reading in evidence.readings.edges:
        yield from _inside(evidence, reading)
        yield from _same_tensor(evidence, reading)
    yield from _written_once(evidence)


def _declared_once(known: Declared) -> Iterator[Diagnostic]:
    """TS614 and TS615: pieces and fills of a buffer that overlap, or leave elements out."""
    place = at(f"/{known.side}")
    for number in distinct(known.transferred):
        buffer = known.buffers[number]
        if _overlaps_itself(buffer):
            message = f"elements of '{buffer.name}' on {known.side} rank {buffer.rank} overlap"
            yield refuse("TS614", message, place, found=f"strides {list(buffer.strides)}")
            return
    parts = [known.values.memory, known.scales.memory, known.fills.memory]
    found, irregular = _miscounted(parts, known)
    yield from (_irregular(known, number, place) for number in irregular)
    for number, address, excess in found[:1]:
        buffer = known.buffers[number]
        yield refuse(
            "TS614",
            f"element {element_text(buffer, address)} of '{buffer.name}' on {known.side} rank "
            f"{buffer.rank} is in {excess + 1 or 'no'} pieces or fills"
            + and_more(len(found), "buffer"),
            place,
            expected="1",
            found=str(excess + 1),
            help_text=f"correct the {known.side}'s manifest",
        )


def _overlaps_itself(buffer: BufferRecord) -> bool:
    """Whether strides may take two elements to one address."""
    reach = 0
    for stride, size in sorted(zip(map(abs, buffer.strides), buffer.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _miscounted(
    parts: Sequence[Regions], known: Declared
) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Transfer buffers whose memory is not filled exactly once: number, address, excess.

    Also the numbers of buffers too irregular to tell.
    """
    buffers = known.transferred
    found = differences([*parts, known.memory(buffers)])
    rows = zip(found.owner.tolist(), found.address.tolist(), found.excess.tolist(), strict=True)
    return list(rows), found.unknown.tolist()


def _irregular(known: Declared, number: int, place: Location) -> Diagnostic:
    buffer = known.buffers[number]
    message = f"'{buffer.name}' on {known.side} rank {buffer.rank} has too many different strides"
    return refuse("TS615", f"{message} to be proved", place)


def _written_once(evidence: Evidence) -> Iterator[Diagnostic]:
    """TS610, TS611 and TS615: elements of receiver buffers that are not written exactly once."""
    known = evidence.receiver
    written = list(writes(evidence))
    excused = known.fills.memory.take(np.flatnonzero(known.fills.value < 0))
    found, irregular = _miscounted([excused, *(write.memory for write in written)], known)
    yield from (_irregular(known, number, at("/edges")) for number in irregular)
    groups: dict[tuple[bool, tuple[str, ...]], list[tuple[int, int, int]]] = {}
    for number, address, excess in found:
        writers = tuple(
            write.at.pointer for write in written if np.any(write.memory.owner == number)
        )
        groups.setdefault((excess < 0, writers), []).append((number, address, excess))
    for members in groups.values():
        yield _miswritten(known, written, members)


def _miswritten(
    known: Declared, written: Sequence[Write], members: Sequence[tuple[int, int, int]]
) -> Diagnostic:
    number, address, excess = members[0]
    buffer = known.buffers[number]
    writers = [write for write in written if holding(write.memory, number, address)]
    others = [write for write in written if np.any(write.memory.owner == number)]
    place = next((write.at for write in [*writers, *others]), at("/edges"))
    where = f"element {element_text(buffer, address)} of '{buffer.name}' on receiver rank"
    more = and_more(len(members), "buffer")
    if excess < 0:
        message = f"{where} {buffer.rank} is never written{more}"
        return refuse("TS610", message, place, meaning(buffer, address), "nothing")
    by = ", ".join(dict.fromkeys(write.at.pointer for write in writers))
    message = f"{where} {buffer.rank} is written {excess + 1} times{more}"
    return refuse("TS611", message, place, f"once, {meaning(buffer, address)}", f"writes of {by}")


def _inside(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS612: regions that leave the piece that is read or the one that is written."""
    ends = [("sender", evidence.sender.values, reading.sender_piece)]
    if reading.edge.op is not Op.AMAX:
        ends.append(("receiver", evidence.receiver.values, reading.receiver_piece))
    for side, pieces, rows in ends:
        wrong = np.flatnonzero(~_holds(pieces, rows, reading))
        if len(wrong):
            row = int(wrong[0])
            piece = int(rows[row])
            moved = (reading.start[row], reading.extent[row], reading.step[row])
            held = (pieces.start[piece], pieces.extent[piece], pieces.step[piece])
            yield refuse(
                "TS612",
                f"edge {reading.number} moves what the {side}'s piece does not hold"
                + and_more(len(wrong), "move"),
                at_edge(reading.number),
                expected=f"part of {box_text(*(part.tolist() for part in held))}",
                found=box_text(*(part.tolist() for part in moved)),
            )


def _holds(pieces: Pieces, rows: IntArray, reading: Reading) -> IntArray:
    """Whether every element of each region is an element of its piece, `[n]`."""
    start, extent, step = pieces.start[rows], pieces.extent[rows], pieces.step[rows]
    last = reading.start + (reading.extent - 1) * reading.step
    inside = (reading.start >= start) & (last <= start + (extent - 1) * step)
    inside &= (reading.start - start) % step == 0
    inside &= (reading.extent == 1) | (reading.step % step == 0)
    return inside.all(axis=1)


def _same_tensor(evidence: Evidence, reading: Reading) -> Iterator[Diagnostic]:
    """TS613: moves whose two ends are different logical tensors."""
    sent = reading.sender.tensor[reading.sender_row]
    wanted = reading.receiver.tensor[reading.receiver_row]
    held = set(evidence.sender.values.tensor.tolist())
    tensors = len(evidence.receiver.tensors)
    for pair in distinct(sent * tensors + wanted):
        name = evidence.sender.tensors[pair // tensors].name
        want = evidence.receiver.tensors[pair % tensors].name
        if not _same_value(evidence, held, name, want):
            message = f"edge {reading.number} writes '{want}' from '{name}', another tensor"
            yield refuse("TS613", message, at_edge(reading.number, "/source"), want, name)
            return


def _same_value(evidence: Evidence, held: set[int], source: str, wanted: str) -> bool:
    """Whether the sender's `source` has the value of the receiver's `wanted`.

    By the sender's ties if it holds `wanted` itself, else by the receiver's.
    """
    sender, receiver = evidence.sender, evidence.receiver
    if source == wanted or sender.class_of(source) == sender.class_of(wanted):
        return True
    if sender.tensor_number.get(wanted) in held:
        return False
    theirs, own = sender.class_of(source), receiver.class_of(wanted)
    mates = (tensor.name for tensor in receiver.tensors if receiver.class_of(tensor.name) == own)
    return any(sender.class_of(mate) == theirs for mate in mates)

"""Proof 2: every element of every transfer buffer is written exactly once, with the right value.

Axioms: the declared pieces and fills; that a tied tensor has the value of the one it is tied to.

- The pieces and fills that a manifest declares for a transfer buffer fill its memory exactly once.
- What the plan writes into a receiver buffer fills its memory exactly once. Writes are the moved
  regions, the blocks whose scales are written, and the fills; regions that a declared reason excuses
  count as written. A region's addresses come from the declared piece. Scales travel with the moves,
  or, where the receiver quantizes, are written once for every block of its piece.
- A moved region lies within the declared piece that is read and within the one that is written.
- The sender's tensor is the receiver's own, or tied to it.

"Exactly once" is one exact identity per buffer (`tiling.py`), for strides of any kind.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tranship.compiler.proofs.declared import Declared, Pieces, column
from tranship.compiler.proofs.evidence import Evidence
from tranship.compiler.proofs.locate import element_text, logical_text
from tranship.compiler.proofs.reading import Reading, padded
from tranship.compiler.proofs.report import PLAN, and_more, at, at_edge, box_text, refuse
from tranship.compiler.proofs.tiling import Regions, differences, regions
from tranship.schema.diagnostics import Diagnostic, Label, Location
from tranship.schema.expression import IntArray
from tranship.schema.plan import Op, Place
from tranship.schema.wire import payload

QUANTIZING = (Op.QUANTIZE, Op.REQUANTIZE)


def prove_coverage(evidence: Evidence) -> Iterator[Diagnostic]:
    """Yield TS610 to TS615."""
    for known in (evidence.sender, evidence.receiver):
        yield from _declared_once(known)
    for reading in evidence.readings.edges:
        yield from _inside(evidence, reading)
        yield from _same_tensor(evidence, reading)
    yield from _written_once(evidence)


def _declared_once(known: Declared) -> Iterator[Diagnostic]:
    """TS614: pieces and fills of a buffer that overlap, or leave elements out."""
    place = at(f"/{known.side}")
    parts = [known.values.memory, known.scales.memory, known.fills.memory]
    for number, address, excess in _differences(parts, known):
        buffer = known.buffers[number]
        times = "in no piece or fill" if excess < 0 else f"in {excess + 1} pieces or fills"
        message = f"element {element_text(buffer, address)} of '{buffer.name}'"
        where = f"on {known.side} rank {buffer.rank}"
        if excess is None:
            yield _irregular(known, number, place)
        else:
            yield refuse("TS614", f"{message} {where} is declared {times}", place)

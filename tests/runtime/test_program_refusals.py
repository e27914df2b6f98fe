"""Plans that contradict themselves are refused before anything runs."""

from typing import Any

import pytest

from tests.runtime.small_plans import Holding, Scaling, box, edge, in_blocks, plainly, plan
from tranship.runtime.program import program
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Side
from tranship.schema.plan import Op, Place, Slot, Span, Staging

SHAPE = (12, 8)
WHOLE = box((0, 0), SHAPE)
BLOCKS = Scaling((4, 4), (0, 0), DType.F32)

PLAIN = plainly(SHAPE, DType.F32, [WHOLE])
CODES = in_blocks(SHAPE, DType.F8E4M3FN, [WHOLE], BLOCKS)
QUANTIZE = {"op": Op.QUANTIZE, "formula": "divide"}


@pytest.mark.parametrize(
    ("sender", "receiver", "side", "how", "message"),
    [
        (CODES, PLAIN, Side.SENDER, {"op": Op.DEQUANTIZE, "place": Place.RECEIVER}, "cannot run"),
        (PLAIN, PLAIN, Side.SENDER, {"op": Op.DEQUANTIZE}, "needs scales"),
        (PLAIN, PLAIN, Side.SENDER, {"op": Op.QUANTIZE}, "needs blocks"),
        (plainly(SHAPE, DType.BF16, [WHOLE]), PLAIN, Side.RECEIVER, {"op": Op.COPY}, "arrives as"),
        (plainly(SHAPE, DType.F64, [WHOLE]), CODES, Side.SENDER, QUANTIZE, "not exact"),
        (
            plainly(SHAPE, DType.F64, [WHOLE]),
            CODES,
            Side.RECEIVER,
            {**QUANTIZE, "place": Place.RECEIVER},
            "not exact",
        ),
        (
            plainly(SHAPE, DType.F32, [box((0, 0), (6, 8)), box((6, 0), (6, 8))]),
            CODES,
            Side.SENDER,
            QUANTIZE,
            "parts of its blocks",
        ),
        (
            in_blocks(SHAPE, DType.F8E4M3FN, [WHOLE], Scaling((4, 4), (-1, 0), DType.F32)),
            CODES,
            Side.SENDER,
            {"op": Op.COPY},
            "do not fit",
        ),
        (
            plainly(SHAPE, DType.F32, [box((0, 0), (6, 8), (2, 1)), box((1, 0), (6, 8), (2, 1))]),
            CODES,
            Side.SENDER,
            {**QUANTIZE, "place": Place.RECEIVER},
            "in steps",
        ),
        (
            in_blocks(SHAPE, DType.F8E4M3FN, [WHOLE], Scaling((3, 4), (0, 0), DType.F32)),
            plainly(SHAPE, DType.F32, [box((0, 0), (6, 8), (2, 1))]),
            Side.SENDER,
            {"op": Op.DEQUANTIZE},
            "do not divide",
        ),
    ],
)
def test_what_halves_cannot_give_is_refused(
    sender: Holding, receiver: Holding, side: Side, how: dict[str, Any], message: str
) -> None:
    made = plan(sender, receiver, [edge(sender, receiver, **how)])
    with pytest.raises(ValueError, match=message):
        program(made, side, 0)


def test_a_buffer_has_one_dtype() -> None:
    first = edge(PLAIN, PLAIN, op=Op.COPY)
    other = first.receiver.model_copy(update={"dtype": DType.BF16})
    edges = [first, first.model_copy(update={"op": Op.CAST, "receiver": other})]
    with pytest.raises(ValueError, match="'w' is f32 and bf16"):
        program(plan(PLAIN, PLAIN, edges), Side.RECEIVER, 0)


def test_messages_must_fit_their_slot() -> None:
    made = plan(PLAIN, PLAIN, [edge(PLAIN, PLAIN, op=Op.COPY)])
    slot = Slot(sender=Span(offset=0, size=256), receiver=Span(offset=0, size=512))
    small = Staging(budget=1024, slots=(slot,))
    with pytest.raises(ValueError, match="round 0 exceed"):
        program(made.model_copy(update={"staging": small}), Side.SENDER, 0)

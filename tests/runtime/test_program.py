"""Programs of plans with names, axes, windows, rounds and several edges, and what they refuse."""

from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tests.runtime.small_plans import (
    DIGEST,
    Box,
    Buffers,
    Scaling,
    assert_same_memory,
    blank,
    box,
    edge,
    emptied,
    filled,
    in_blocks,
    plainly,
    plan,
    plan_side,
    whole_plan,
)
from tranship.runtime.execute import simulate
from tranship.runtime.jobs import JobOp
from tranship.runtime.program import program
from tranship.runtime.quantization import quantize
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Axis, Side
from tranship.schema.placement import Seat
from tranship.schema.plan import (
    DerivedStep,
    Edge,
    FillEdge,
    Half,
    Op,
    Place,
    PlanSide,
    Round,
    Seats,
    Slot,
    Span,
    Staging,
    TransferPlan,
)

E4M3 = torch.float8_e4m3fn
BLOCKS = Scaling((4, 4), (0, 0), DType.F32)
SHAPE = (12, 8)
WHOLE = box((0, 0), SHAPE)


def rows(*cuts: int) -> list[Any]:
    """Cut SHAPE into boxes of whole rows, at 0, `cuts` and 12."""
    edges = [0, *cuts, SHAPE[0]]
    return [box((a, 0), (b - a, SHAPE[1])) for a, b in pairwise(edges)]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def quantized(dense: Tensor, scaling: Scaling = BLOCKS) -> tuple[Tensor, Tensor]:
    return quantize(
        dense, scaling.block, formula="divide", code_dtype=E4M3, scale_dtype=torch.float32
    )


def run(made: TransferPlan, sender: Buffers, expected: Buffers) -> None:
    receiver = emptied(expected)
    simulate(made, sender, receiver, {})
    assert_same_memory(receiver, expected)


# --- names, axes and rounds ---------------------------------------------------------------------


def layered_plan() -> TransferPlan:
    """Four layers of [8, 6] over 2 stages of 2 ranks, into half of a fused buffer on 4 ranks."""
    sender = Half(
        buffer="decoder.{layer % 2}.gate",
        dtype=DType.BF16,
        at={"pp": "layer // 2"},
        start=("tp * 4", 0),
        extent=(4, 6),
        offset=0,
        strides=(6, 1),
    )
    receiver = Half(
        buffer="layers.{layer}.gate_up",
        dtype=DType.BF16,
        start=("tp * 2", 0),
        extent=(2, 6),
        offset=12,
        strides=(6, 1),
    )
    one = Edge(
        op=Op.COPY,
        tensor="layers.{layer}.gate",
        indices={"layer": "0..3"},
        shape=(8, 6),
        sender=sender,
        receiver=receiver,
        round="layer % 2",
    )
    trainer = (Axis(name="tp", size=2, stride=1), Axis(name="pp", size=2, stride=2))
    engine = (Axis(name="tp", size=4, stride=1),)
    return whole_plan(
        [one],
        sender=PlanSide(manifest=DIGEST, world_size=4, axes=trainer),
        receiver=PlanSide(manifest=DIGEST, world_size=4, axes=engine),
        rounds=2,
    )


def layered_memory() -> tuple[Buffers, Buffers]:
    dense = numbers(4, 8, 6).bfloat16()
    sender: Buffers = {}
    for rank in range(4):
        tp, pp = rank % 2, rank // 2
        own = dense[2 * pp : 2 * pp + 2, 4 * tp : 4 * tp + 4]
        sender[rank] = {f"decoder.{layer}.gate": own[layer].clone() for layer in range(2)}
    expected: Buffers = {}
    for rank in range(4):
        expected[rank] = {}
        for layer in range(4):
            fused = blank(24, DType.BF16)
            fused[12:] = dense[layer, 2 * rank : 2 * rank + 2].reshape(-1)
            expected[rank][f"layers.{layer}.gate_up"] = fused
    return sender, expected


def test_layers_of_stages_reach_their_half_of_a_fused_buffer() -> None:
    run(layered_plan(), *layered_memory())


def test_a_sender_knows_its_own_layers_only() -> None:
    made = program(layered_plan(), Side.SENDER, 3)
    assert {(use.name, use.writes) for use in made.buffers} == {
        ("decoder.0.gate", False),
        ("decoder.1.gate", False),
    }
    assert [[message.peer for message in one.messages] for one in made.rounds] == [[2, 3], [2, 3]]
    assert [len(one.jobs) for one in made.rounds] == [2, 2]


def test_both_ends_agree_on_every_message() -> None:
    made = layered_plan()
    sent, received = (
        {
            (one.number, *((rank, m.peer) if side is Side.SENDER else (m.peer, rank)), m.size)
            for rank in range(4)
            for one in program(made, side, rank).rounds
            for m in one.messages
        }
        for side in Side
    )
    assert sent == received
    assert len(sent) == 16


def test_rounds_may_share_a_slot() -> None:
    made = layered_plan()
    slot = Slot(sender=Span(offset=256, size=512), receiver=Span(offset=0, size=640))
    staging = Staging(budget=1024, slots=(slot,))
    shared = (Round(slot=0), Round(slot=0, after=(0,)))
    made = made.model_copy(update={"staging": staging, "rounds": shared})
    run(made, *layered_memory())
    for side, offset, size in ((Side.SENDER, 256, 512), (Side.RECEIVER, 0, 640)):
        own = program(made, side, 0)
        assert own.staging_bytes == offset + size
        assert [(one.slot_offset, one.slot_size, one.after) for one in own.rounds] == [
            (offset, size, ()),
            (offset, size, (0,)),
        ]


@pytest.mark.parametrize(
    ("how", "peers"),
    [({}, [0, 0, 0, 0]), ({"turn": "rank"}, [0, 1, 2, 0]), ({"nearest": True}, [0, 0, 1, 2])],
)
def test_a_replica_is_chosen_by_turn_or_by_distance(how: dict[str, Any], peers: list[int]) -> None:
    sender, receiver = (
        plainly(SHAPE, DType.F32, [WHOLE] * 3),
        plainly(SHAPE, DType.F32, [WHOLE] * 4),
    )
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.COPY, **how)])
    seats = Seats(
        sender=Seat(host="rank", device=0), receiver=Seat(host="max(rank - 1, 0)", device=0)
    )
    made = made.model_copy(update={"seats": seats})
    found = [program(made, Side.RECEIVER, rank).rounds[0].messages[0].peer for rank in range(4)]
    assert found == peers


# --- several edges --------------------------------------------------------------------


def fed_by_two(upper: Box, lower: Box) -> tuple[TransferPlan, Buffers, Buffers]:
    """Make a tensor of the receiver from two kinds of sender buffers."""
    dense = numbers(*SHAPE).bfloat16().float()
    receiver = in_blocks(SHAPE, DType.F8E4M3FN, [WHOLE], BLOCKS)
    edges: list[Edge] = []
    memory: Buffers = {0: {}}
    for name, dtype, part in (("upper", DType.BF16, upper), ("lower", DType.F32, lower)):
        holding = plainly(SHAPE, dtype, [part])
        one = edge(holding, receiver, op=Op.QUANTIZE, place=Place.RECEIVER, formula="divide")
        place = {"start": part.start, "extent": part.extent, "strides": (8, 1), "offset": 0}
        sender = one.sender.model_copy(update={"buffer": name, **place})
        edges.append(one.model_copy(update={"sender": sender}))
        memory[0][name] = filled(holding, dense)[0]["w"]
    side = PlanSide(manifest=DIGEST, world_size=1)
    made = whole_plan(edges, sender=side, receiver=plan_side(receiver))
    return made, memory, filled(receiver, *quantized(dense))


def test_several_edges_make_one_quantized_box() -> None:
    made, sender, expected = fed_by_two(*rows(5))
    (job,) = program(made, Side.RECEIVER, 0).rounds[0].jobs
    assert (job["op"], job["fragment_count"]) == (JobOp.QUANTIZE, 2)
    run(made, sender, expected)


def test_a_box_with_a_hole_is_not_quantized() -> None:
    upper, _, lower = rows(5, 6)
    made, _, _ = fed_by_two(upper, lower)
    with pytest.raises(ValueError, match="do not make up a box"):
        program(made, Side.RECEIVER, 0)


# --- fills and recipes ----------------------------------------------------------------------------


def test_fills_write_their_regions_and_nothing_else() -> None:
    fill = FillEdge(
        buffer="layers.{layer}.pad",
        dtype=DType.BF16,
        indices={"layer": "0..1"},
        at={"rank": "layer"},
        offset="2 + rank",
        sizes=(2, 3),
        strides=(8, 2),
        value=1,
    )
    side = PlanSide(manifest=DIGEST, world_size=2)
    made = whole_plan([], sender=side, receiver=side).model_copy(update={"fills": (fill,)})
    expected: Buffers = {}
    for rank in range(2):
        expected[rank] = {f"layers.{rank}.pad": blank(24, DType.BF16)}
        for at in (0, 2, 4, 8, 10, 12):
            expected[rank][f"layers.{rank}.pad"][2 + rank + at] = 1
    run(made, {0: {}, 1: {}}, expected)


@pytest.mark.parametrize("dtype", DType)
@pytest.mark.parametrize("value", [0, 1])
def test_fills_write_numbers_of_the_dtype(dtype: DType, value: Literal[0, 1]) -> None:
    fill = FillEdge(buffer="w", dtype=dtype, offset=0, sizes=(), strides=(), value=value)
    side = PlanSide(manifest=DIGEST, world_size=1)
    made = whole_plan([], sender=side, receiver=side).model_copy(update={"fills": (fill,)})
    receiver = {0: {"w": blank(1, dtype)}}
    simulate(made, {0: {}}, receiver, {})
    # The exponent-only dtype has no zero; its least value stands for it.
    assert receiver[0]["w"].double()[0] == (value or (2.0**-127) * (dtype is DType.F8E8M0FNU))


def test_recipes_run_in_order_once_their_round_is_written() -> None:
    steps = [("twice", "b", ("layers.1.gate_up",), 1), ("sum", "c", ("b", "layers.0.gate_up"), 1)]
    made = layered_plan().model_copy(
        update={
            "derived": tuple(
                DerivedStep(recipe=r, buffer=b, inputs=i, after=n, at={"tp": 1})
                for r, b, i, n in steps
            )
        }
    )
    sender, expected = layered_memory()
    receiver = emptied(expected)
    receiver[1] |= {"b": blank(24, DType.F32), "c": blank(24, DType.F32)}

    def add(result: Tensor, *inputs: Tensor) -> None:
        result.copy_(sum((one.float() for one in inputs), torch.zeros(24)))

    def double(result: Tensor, first: Tensor) -> None:
        add(result, first, first)

    simulate(made, sender, receiver, {"twice": double, "sum": add})
    own = expected[1]
    doubled = 2 * own["layers.1.gate_up"].float()
    assert receiver[1]["b"].equal(doubled)
    assert receiver[1]["c"].equal(doubled + own["layers.0.gate_up"].float())

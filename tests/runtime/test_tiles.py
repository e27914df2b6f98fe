"""Tile tables, run tile by tile, against what must come of the whole step."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.runtime.random_transfers import TRANSFERS, on_grid
from tests.runtime.small_plans import (
    DIGEST,
    Block,
    Buffers,
    Scaling,
    assert_same_memory,
    blank,
    bound,
    box,
    edge,
    emptied,
    filled,
    in_blocks,
    plainly,
    plan,
    whole_plan,
)
from tests.runtime.tile_interpreter import Machine
from tranship.runtime.jobs import blank_fragments
from tranship.runtime.program import Program, program
from tranship.runtime.tiles import TILE_SIZE, tile_jobs, tile_records
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Side
from tranship.schema.plan import FillEdge, Op, PlanSide, TransferPlan


def run_tiles(
    own: Program, buffers: dict[str, Tensor], slot: Tensor, size: tuple[int, int]
) -> None:
    """Run round 0 of one rank."""
    table = tile_records(own.rounds[0], size)
    Machine(bound(own.buffers, buffers), slot, table).run()


def step_in_tiles(
    made: TransferPlan, sender: Buffers, receiver: Buffers, size: tuple[int, int]
) -> None:
    """Run round 0 of all ranks."""
    sent: dict[tuple[int, int], Tensor] = {}
    for rank, buffers in sender.items():
        own = program(made, Side.SENDER, rank)
        slot = torch.zeros(own.rounds[0].slot_size, dtype=torch.uint8)
        run_tiles(own, buffers, slot, size)
        for message in own.rounds[0].messages:
            sent[rank, message.peer] = slot[message.offset : message.offset + message.size]
    for rank, buffers in receiver.items():
        own = program(made, Side.RECEIVER, rank)
        slot = torch.zeros(own.rounds[0].slot_size, dtype=torch.uint8)
        for message in own.rounds[0].messages:
            slot[message.offset : message.offset + message.size] = sent[message.peer, rank]
        run_tiles(own, buffers, slot, size)


@pytest.mark.parametrize("kind", TRANSFERS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), size=st.sampled_from([(2, 2), (3, 5), (1, 128), (128, 1), (128, 128)]))
def test_tiles_do_what_the_whole_step_does(
    kind: str, data: st.DataObject, size: tuple[int, int]
) -> None:
    transfer = data.draw(TRANSFERS[kind])
    step_in_tiles(transfer.plan, transfer.sender, transfer.receiver, size)
    assert_same_memory(transfer.receiver, transfer.expected)


@pytest.mark.parametrize(("block", "launches"), [((128, 128), 1), ((64, 200), 2), ((1, "all"), 2)])
def test_tiles_are_whole_blocks_where_blocks_fit(block: Block, launches: int) -> None:
    shape = (300, 450)
    scaling = Scaling(block, (0, 0), DType.F32)
    sender = plainly(shape, DType.BF16, [box((0, 0), shape)])
    receiver = in_blocks(shape, DType.F8E4M3FN, [box((50, 0), (250, 450))], scaling)
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.QUANTIZE, formula="divide")])
    own = program(made, Side.SENDER, 0).rounds[0]
    table = tile_records(own)
    if launches == 1:
        assert table.amax_places == 0
        assert (table.tiles["phase"] == 0).all()
        assert table.tiles["extent"].tolist() == [
            [rows, columns] for rows in (128, 128, 44) for columns in (128, 128, 128, 66)
        ]
    else:
        assert table.amax_places == own.jobs["scale_counts"].prod()
        assert (table.tiles["amax_place"] >= 0).all()
    dense = torch.randn(shape).bfloat16()
    expected = filled(receiver, *on_grid(dense, scaling, "divide"))
    found = emptied(expected)
    step_in_tiles(made, filled(sender, dense), found, TILE_SIZE)
    assert_same_memory(found, expected)


def test_fills_are_tiles_too() -> None:
    sizes, strides = (2, 3, 200), (1300, 400, 2)
    fill = FillEdge(buffer="w", dtype=DType.I16, offset=5, sizes=sizes, strides=strides, value=1)
    side = PlanSide(manifest=DIGEST, world_size=1)
    made = whole_plan([], sender=side, receiver=side).model_copy(update={"fills": (fill,)})
    own = program(made, Side.RECEIVER, 0)
    found, expected = blank(2600, DType.I16), blank(2600, DType.I16)
    expected.as_strided(sizes, strides, expected.storage_offset() + 5).fill_(1)
    table = tile_jobs(own.fills, blank_fragments(0, 3))
    assert table.tiles["extent"].tolist() == [[3, 128], [3, 72]] * 2
    Machine([found], torch.zeros(0, dtype=torch.uint8), table).run()
    assert_same_memory({0: {"w": found}}, {0: {"w": expected}})

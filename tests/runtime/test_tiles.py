"""Tile tables, run tile by tile, against what must come of the whole step."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.runtime.random_transfers import TRANSFERS
from tests.runtime.small_plans import Buffers, assert_same_memory, bound
from tests.runtime.tile_interpreter import Machine
from tranship.runtime.program import Program, program
from tranship.runtime.tiles import tile_records
from tranship.schema.manifest import Side
from tranship.schema.plan import TransferPlan


def run_tiles(own: Program, buffers: dict[str, Tensor], slot: Tensor, size: int) -> None:
    """Run round 0 of one rank."""
    table = tile_records(own.rounds[0], size)
    Machine(bound(own.buffers, buffers), slot, table).run()


def step_in_tiles(plan: TransferPlan, sender: Buffers, receiver: Buffers, size: int) -> None:
    """Run round 0 of all ranks."""
    sent: dict[tuple[int, int], Tensor] = {}
    for rank, buffers in sender.items():
        own = program(plan, Side.SENDER, rank)
        slot = torch.zeros(own.rounds[0].slot_size, dtype=torch.uint8)
        run_tiles(own, buffers, slot, size)
        for message in own.rounds[0].messages:
            sent[rank, message.peer] = slot[message.offset : message.offset + message.size]
    for rank, buffers in receiver.items():
        own = program(plan, Side.RECEIVER, rank)
        slot = torch.zeros(own.rounds[0].slot_size, dtype=torch.uint8)
        for message in own.rounds[0].messages:
            slot[message.offset : message.offset + message.size] = sent[message.peer, rank]
        run_tiles(own, buffers, slot, size)


@pytest.mark.parametrize("kind", TRANSFERS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), size=st.sampled_from([2, 3, 5, 128]))
def test_tiles_do_what_the_whole_step_does(kind: str, data: st.DataObject, size: int) -> None:
    transfer = data.draw(TRANSFERS[kind])
    step_in_tiles(transfer.plan, transfer.sender, transfer.receiver, size)
    assert_same_memory(transfer.receiver, transfer.expected)

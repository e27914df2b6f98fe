"""Whole steps of all ranks, against slicing and quantizing the whole tensor."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.random_transfers import TRANSFERS
from tests.runtime.small_plans import assert_same_memory
from tranship.runtime.execute import simulate


@pytest.mark.parametrize("kind", TRANSFERS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_rank_ends_up_with_its_part_of_the_whole(kind: str, data: st.DataObject) -> None:
    transfer = data.draw(TRANSFERS[kind])
    simulate(transfer.plan, transfer.sender, transfer.receiver, {})
    assert_same_memory(transfer.receiver, transfer.expected)

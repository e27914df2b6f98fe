"""What transports refuse."""

import pytest
import torch
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import Parcel, TransportError, World
from tranship.schema.manifest import Side

WORLD = World(senders=1, receivers=2)


def test_members_are_senders_then_receivers() -> None:
    seats = [(Side.SENDER, 0), (Side.RECEIVER, 0), (Side.RECEIVER, 1)]
    assert [WORLD.seat(member) for member in range(WORLD.size)] == seats
    assert [WORLD.member(*seat) for seat in seats] == [0, 1, 2]
    for side, rank in [(Side.SENDER, 1), (Side.RECEIVER, 2), (Side.RECEIVER, -1)]:
        with pytest.raises(ValueError, match=f"no {side} rank"):
            WORLD.member(side, rank)


def test_bytes_of_another_number_are_an_error() -> None:
    (sender,), receivers = connect_locally(WORLD, timeout=5)
    sender.exchange(0, [Parcel(1, torch.zeros(8, dtype=torch.uint8))], [])
    with pytest.raises(TransportError, match="8 bytes came instead of 9"):
        receivers[1].exchange(0, [], [Parcel(0, torch.zeros(9, dtype=torch.uint8))])


def test_what_was_sent_may_be_overwritten() -> None:
    (sender,), receivers = connect_locally(WORLD, timeout=5)
    sent, received = torch.ones(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
    sender.exchange(0, [Parcel(0, sent)], [])
    sent.zero_()
    receivers[0].exchange(0, [], [Parcel(0, received)])
    assert received.tolist() == [1] * 4


def test_gloo_does_not_connect_without_all_ranks() -> None:
    with pytest.raises(TransportError, match="receiver rank 0, receiver rank 1"):
        connect_gloo(HashStore(), WORLD, Side.SENDER, 0, timeout=0.1)


def test_gloo_refuses_memory_of_devices() -> None:
    transport = connect_gloo(HashStore(), World(1, 0), Side.SENDER, 0, timeout=10)
    assert transport.refusal(torch.device("cpu")) is None
    assert "meta" in str(transport.refusal(torch.device("meta")))

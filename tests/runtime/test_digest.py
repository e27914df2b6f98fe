"""Digests of messages, against the definition in plain integers, and what they notice."""

from bisect import bisect_right

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.runtime.random_transfers import TRANSFERS, Transfer
from tests.runtime.small_plans import bound, box, edge, filled, plainly, plan
from tranship.runtime.digest import transformed_digests, wire_digests, written_digests
from tranship.runtime.execute import Memory, pack, target_view, unpack
from tranship.runtime.program import RoundProgram, program
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Side
from tranship.schema.plan import Op

MASK = 2**64 - 1


def expected_digest(item: RoundProgram, message: int, slot: Tensor) -> int:
    """Follow the definition, word by word."""
    total, sent = 0, slot.numpy().tobytes()
    for part in item.parts[item.parts["message"] == message]:
        first, size = int(part["offset"]), int(part["size"])
        for at in range(first, first + size, 8):
            word = int.from_bytes(sent[at : min(at + 8, first + size)], "little")
            position = (at - item.messages[message].offset) // 8
            z = (word + (position + 1) * 0x9E3779B97F4A7C15) & MASK
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
            total += z ^ (z >> 31)
    return total & MASK


class Step:
    """Round 0 of a transfer, with the slot of every rank. Padding differs from slot to slot."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.senders = [program(transfer.plan, Side.SENDER, rank) for rank in transfer.sender]
        self.receivers = [program(transfer.plan, Side.RECEIVER, rank) for rank in transfer.receiver]
        self.sent: dict[tuple[int, int], int] = {}
        self.packed: list[Tensor] = []
        for rank, own in enumerate(self.senders):
            slot = torch.full((own.rounds[0].slot_size,), rank, dtype=torch.uint8)
            pack(own.rounds[0], bound(own.buffers, transfer.sender[rank]), slot)
            self.packed.append(slot)
            digests = wire_digests(own.rounds[0], slot).tolist()
            for message, digest in zip(own.rounds[0].messages, digests, strict=True):
                self.sent[rank, message.peer] = digest

    def deliver(self, rank: int) -> tuple[RoundProgram, list[Tensor], Tensor]:
        """Return the round of a receiver, its buffers, and its slot with what was sent."""
        own = self.receivers[rank]
        slot = torch.full((own.rounds[0].slot_size,), 99, dtype=torch.uint8)
        for message in own.rounds[0].messages:
            theirs = self.senders[message.peer].rounds[0].messages
            source = next(one for one in theirs if one.peer == rank)
            sent = self.packed[message.peer][source.offset : source.offset + source.size]
            slot[message.offset : message.offset + message.size] = sent
        return own.rounds[0], bound(own.buffers, self.transfer.receiver[rank]), slot

    def expected(self, rank: int) -> list[int]:
        return [self.sent[m.peer, rank] for m in self.receivers[rank].rounds[0].messages]


quickly = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS = ["copy", "cast", "passthrough", "quantize at sender", "quantize by amax"]


@pytest.mark.parametrize("kind", KINDS)
@quickly
@given(data=st.data())
def test_digests_follow_their_definition(kind: str, data: st.DataObject) -> None:
    step = Step(data.draw(TRANSFERS[kind]))
    for own, slot in zip(step.senders, step.packed, strict=True):
        item = own.rounds[0]
        found = wire_digests(item, slot).tolist()
        assert [digest & MASK for digest in found] == [
            expected_digest(item, message, slot) for message in range(len(item.messages))
        ]


@pytest.mark.parametrize("kind", KINDS)
@quickly
@given(data=st.data())
def test_what_is_written_and_what_is_transformed_make_up_what_was_sent(
    kind: str, data: st.DataObject
) -> None:
    step = Step(data.draw(TRANSFERS[kind]))
    for rank in range(len(step.receivers)):
        item, buffers, slot = step.deliver(rank)
        unpack(item, buffers, slot)
        assert wire_digests(item, slot).tolist() == step.expected(rank)
        found = written_digests(item, buffers) + transformed_digests(item, slot)
        assert found.tolist() == step.expected(rank)


@pytest.mark.parametrize("kind", ["copy", "passthrough", "quantize at sender"])
@quickly
@given(data=st.data())
def test_one_wrong_bit_in_a_buffer_changes_the_digest_of_its_message(
    kind: str, data: st.DataObject
) -> None:
    step = Step(data.draw(TRANSFERS[kind]))
    rank = data.draw(st.integers(0, len(step.receivers) - 1))
    item, buffers, slot = step.deliver(rank)
    assume(len(item.jobs) > 0)
    unpack(item, buffers, slot)
    job = item.jobs[data.draw(st.integers(0, len(item.jobs) - 1))]
    element = target_view(job, Memory(buffers), bitwise=True)[
        tuple(data.draw(st.integers(0, size - 1)) for size in job["inner_extent"].tolist())
    ]
    element ^= 1 << data.draw(st.integers(0, 8 * element.itemsize - 2))
    wrong = written_digests(item, buffers) != np.array(step.expected(rank), dtype=np.int64)
    fragment = item.fragments[job["fragment_first"]]
    starts = [message.offset for message in item.messages]
    assert np.flatnonzero(wrong).tolist() == [bisect_right(starts, fragment["offset"]) - 1]


@quickly
@given(data=st.data())
def test_what_was_not_unpacked_is_noticed(data: st.DataObject) -> None:
    step = Step(data.draw(TRANSFERS["quantize at sender"]))
    for rank in range(len(step.receivers)):
        item, buffers, _ = step.deliver(rank)
        found = written_digests(item, buffers).tolist()
        assert all(a != b for a, b in zip(found, step.expected(rank), strict=True))


@quickly
@given(data=st.data())
def test_a_wrong_bit_in_what_a_receiver_quantizes_is_noticed(data: st.DataObject) -> None:
    step = Step(data.draw(TRANSFERS["quantize at receiver"]))
    rank = data.draw(st.integers(0, len(step.receivers) - 1))
    item, buffers, slot = step.deliver(rank)
    assume(len(item.parts) > 0)
    part = item.parts[data.draw(st.integers(0, len(item.parts) - 1))]
    byte = int(part["offset"]) + data.draw(st.integers(0, int(part["size"]) - 1))
    slot[byte] ^= 1 << data.draw(st.integers(0, 7))
    unpack(item, buffers, slot)
    found = written_digests(item, buffers) + transformed_digests(item, slot)
    wrong = np.flatnonzero(found != np.array(step.expected(rank), dtype=np.int64))
    assert wrong.tolist() == [int(part["message"])]


def test_every_round_counts_its_own_messages() -> None:
    sender = plainly((6,), DType.U8, [box((0,), (6,))])
    receiver = plainly((6,), DType.U8, [box((0,), (n,)) for n in (6, 5, 4)])
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.COPY, round="rank % 2")], rounds=2)
    own = program(made, Side.SENDER, 0)
    for item in own.rounds:
        slot = torch.zeros(item.slot_size, dtype=torch.uint8)
        pack(item, bound(own.buffers, filled(sender, torch.arange(6))[0]), slot)
        assert [digest & MASK for digest in wire_digests(item, slot).tolist()] == [
            expected_digest(item, message, slot) for message in range(len(item.messages))
        ]

"""Steps without a wire: what is written, and digests by which the two ends are compared.

Triton's interpreter, which runs the kernels where there is no GPU, rounds otherwise than torch;
only on CUDA is the memory that they leave compared.
"""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.runtime.direct_steps import senders_of, step_directly
from tests.runtime.kernel_steps import CUDA, DEVICE, blanked, different, placed
from tests.runtime.random_transfers import TRANSFERS
from tests.runtime.small_plans import (
    DIGEST,
    assert_same_memory,
    bound,
    box,
    edge,
    plainly,
    plan,
    whole_plan,
)
from tranship.runtime.deliveries import hex_digest
from tranship.runtime.digest import wire_digests
from tranship.runtime.direct import GROUPS, direct, outgoing
from tranship.runtime.execute import pack
from tranship.runtime.kernels.launch import bind_digests
from tranship.runtime.kernels.mapped import SampleKernels, bind_direct, bind_samples
from tranship.runtime.kernels.rounds import written_digests
from tranship.runtime.kernels.tables import Addresses, Wire
from tranship.runtime.program import program
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Side
from tranship.schema.plan import Edge, FillEdge, Half, Op, PlanSide, TransferPlan

SOME_GROUPS = (0, 1, 2, 5) if CUDA else (0, 1)
MOST_JOBS = 9

random_transfers = pytest.mark.parametrize("kind", TRANSFERS)


@random_transfers
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_joined_programs_write_what_each_receiver_shall_hold(
    kind: str, data: st.DataObject
) -> None:
    transfer = data.draw(TRANSFERS[kind])
    step_directly(transfer.plan, transfer.sender, transfer.receiver)
    assert_same_memory(transfer.receiver, transfer.expected)


# --- kernels ------------------------------------------------------------------------------------

SHORT = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


def bound_samples(plan_: TransferPlan, sources: list[list[Tensor]]) -> list[SampleKernels | None]:
    """Bind what each sender compares, unless it holds nothing that is sent."""
    ranks = range(plan_.receiver.world_size)
    return [
        bind_samples([outgoing(sender, rank) for rank in ranks], own) if own else None
        for sender, own in zip(senders_of(plan_), sources, strict=True)
    ]


def found_by(samples: SampleKernels | None, group: int, receiver: int) -> int:
    """Return the digest of what a sender packs of a group for a receiver."""
    if samples is None:
        return 0
    samples.run(group)
    return sums(samples.totals.lanes)[receiver]


def sums(lanes: Tensor) -> list[int]:
    return [int(total) for total in lanes.sum(dim=-1).cpu()]


@random_transfers
@settings(
    max_examples=15 if CUDA else 3,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(data=st.data())
def test_what_a_receiver_keeps_of_a_group_has_the_digest_of_what_was_sent(
    kind: str, data: st.DataObject
) -> None:
    transfer = data.draw(TRANSFERS[kind])
    senders, ranks = senders_of(transfer.plan), range(transfer.plan.receiver.world_size)
    receivers = [program(transfer.plan, Side.RECEIVER, rank) for rank in ranks]
    # The interpreter takes long for what a GPU does at once.
    jobs = sum(len(item.jobs) for own in (*senders, *receivers) for item in own.rounds)
    assume(CUDA or jobs <= MOST_JOBS)
    held, wanted = placed(transfer.sender), placed(transfer.expected)
    kept = blanked(wanted)
    sources = [bound(own.buffers, held[own.rank]) for own in senders]
    samples = bound_samples(transfer.plan, sources)
    for receiver in receivers:
        if not receiver.buffers:
            continue
        own = bound(receiver.buffers, kept[receiver.rank])
        kernels = bind_direct(direct(receiver, senders), own, sources, DEVICE)
        for group in SOME_GROUPS:
            kernels.run(group)
            if CUDA:
                torch.cuda.synchronize()
            found = [hex_digest(digest) for digest, _ in kernels.found(group)]
            sent = [found_by(each, group, receiver.rank) for each in samples]
            assert found == [hex_digest(digest) for digest in sent]
    # The interpreter rounds to short types in another way.
    exact = {
        rank: {n: tensor for n, tensor in own.items() if CUDA or tensor.dtype not in SHORT}
        for rank, own in wanted.items()
    }
    assert different(kept, exact) == []


# --- many small tensors -------------------------------------------------------------------------

TENSORS = GROUPS + 6
"""Tensors that one rank sends to another, a job each: some groups have two."""
SIZE, GAP = 5, 3
"""Elements of each, and how far apart the receiver has them: such copies are read back."""


FILLED = 2
"""A tensor of the receiver between whose elements there are ones, which nobody sends."""


def many() -> TransferPlan:
    """Send tensors of whole numbers, `w0` and so on, from one rank to one."""

    def half(number: int, stride: int) -> Half:
        return Half(
            buffer=f"w{number}",
            dtype=DType.I32,
            start=(0,),
            extent=(SIZE,),
            offset=0,
            strides=(stride,),
        )

    edges = [
        Edge(
            op=Op.COPY,
            tensor=f"w{number}",
            shape=(SIZE,),
            sender=half(number, 1),
            receiver=half(number, GAP),
        )
        for number in range(TENSORS)
    ]
    ones = FillEdge(
        buffer=f"w{FILLED}", dtype=DType.I32, offset=1, sizes=(SIZE,), strides=(GAP,), value=1
    )
    side = PlanSide(manifest=DIGEST, world_size=1)
    made = whole_plan(edges, sender=side, receiver=side)
    return made.model_copy(update={"fills": (ones,)})


class Pair:
    """A sender and a receiver of many tensors, in one process."""

    def __init__(self) -> None:
        made = many()
        self.sender, self.receiver = (program(made, side, 0) for side in Side)
        assert self.sender.side is Side.SENDER
        generator = torch.Generator().manual_seed(3)
        numbers = torch.randint(-(2**31), 2**31, (TENSORS, SIZE), generator=generator)
        self.sent = [row.to(DEVICE, torch.int32) for row in numbers]
        self.kept = [torch.zeros(SIZE * GAP, dtype=torch.int32, device=DEVICE) for _ in self.sent]
        self.sources = [self.sent[int(use.name[1:])] for use in self.sender.buffers]
        targets = [self.kept[int(use.name[1:])] for use in self.receiver.buffers]
        jobs = direct(self.receiver, [self.sender])
        self.kernels = bind_direct(jobs, targets, [self.sources], DEVICE)
        at = Addresses.of([*targets, *self.sources], 0)
        wire = Wire(jobs.entry, jobs.values, jobs.scales)
        self.lanes = torch.zeros_like(self.kernels.totals.lanes)
        self.digests = bind_digests(written_digests(jobs.batch.jobs, wire, at), self.lanes)
        self.samples = bind_samples([outgoing(self.sender, 0)], self.sources)
        self.sampled = self.sample(range(GROUPS))
        self.kernels.run(0)

    def group(self, number: int) -> int:
        """Return the group of the job that sends a tensor."""
        part = outgoing(self.sender, 0)
        return int(part.group[part.batch.jobs["edge"] == number].item())

    def sample(self, groups: Iterable[int]) -> list[int]:
        """Return the digests of what the sender holds of some groups now."""
        return [found_by(self.samples, group, 0) for group in groups]

    def digested(self) -> list[int]:
        """Return the digests of what the receiver holds now, without writing it again."""
        self.lanes.zero_()
        for launch in self.digests:
            launch()
        return sums(self.lanes)[:GROUPS]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return Pair()


def whole_digest(pair: Pair) -> int:
    """Digest the message that would be sent, by other means."""
    (item,) = pair.sender.rounds
    slot = torch.zeros(item.slot_size, dtype=torch.uint8)
    pack(item, [tensor.cpu() for tensor in pair.sources], slot)
    return int(wire_digests(item, slot)[0])


def test_in_as_many_steps_as_there_are_groups_every_job_is_sampled_once(pair: Pair) -> None:
    assert (sum(pair.sampled) - whole_digest(pair)) % 2**64 == 0
    assert 0 not in pair.sampled
    assert pair.digested() == pair.sampled
    dealt = outgoing(pair.sender, 0)
    chosen = np.concatenate([np.flatnonzero(dealt.group == n % GROUPS) for n in range(7, 71)])
    assert sorted(chosen.tolist()) == list(range(TENSORS))


def unequal(one: list[int], other: list[int]) -> list[int]:
    return [number for number, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


@pytest.mark.parametrize(("number", "element"), [(4, 0), (4, SIZE - 1), (TENSORS - 1, 1)])
def test_a_byte_that_flips_at_the_receiver_shows_in_its_group(
    pair: Pair, number: int, element: int
) -> None:
    byte = pair.kept[number].view(torch.uint8)[element * GAP * 4 + 1 :][:1]
    assert unequal(pair.digested(), pair.sampled) == []
    byte.bitwise_xor_(torch.ones_like(byte))
    after = pair.digested()
    byte.bitwise_xor_(torch.ones_like(byte))
    assert unequal(after, pair.sampled) == [pair.group(number)]


def test_a_byte_between_elements_is_nobodys(pair: Pair) -> None:
    pair.kept[4][1] += 1
    assert pair.digested() == pair.sampled


@pytest.mark.parametrize("number", [4, TENSORS - 1])
def test_a_value_that_changes_after_it_was_read_shows_in_its_group(pair: Pair, number: int) -> None:
    own = pair.group(number)
    groups = (own, (own + 1) % GROUPS)
    read = pair.digested()
    pair.sent[number][2] += 1
    late = pair.sample(groups)
    pair.sent[number][2] -= 1
    assert unequal([read[group] for group in groups], late) == [0]
    assert unequal([read[group] for group in groups], pair.sample(groups)) == []


def test_constants_are_written_beside_what_is_sent(pair: Pair) -> None:
    sent, ones, rest = pair.kept[FILLED].view(SIZE, GAP).unbind(1)
    assert torch.equal(sent, pair.sent[FILLED])
    assert ones.tolist() == [1] * SIZE
    assert rest.tolist() == [0] * SIZE


def test_samples_of_memory_that_is_gone_are_not_read(pair: Pair) -> None:
    assert pair.samples is not None
    for number in (4, TENSORS - 1):
        tensor, here, elsewhere = pair.sent[number], pair.sent[number].data, pair.sent[number] + 1
        tensor.data = elsewhere
        with pytest.raises(RuntimeError, match="not where it was"):
            pair.samples.run(pair.group(number))
        tensor.data = here
    assert pair.sample(range(GROUPS)) == pair.sampled


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 1])
def test_a_receiver_whose_sender_is_missing_is_refused(missing: int) -> None:
    sender = plainly((8,), DType.F32, [box((0,), (4,)), box((4,), (4,))])
    receiver = plainly((8,), DType.F32, [box((0,), (8,))])
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.COPY)])
    senders = senders_of(made)
    own = program(made, Side.RECEIVER, 0)
    assert direct(own, senders).senders == (0, 1)
    with pytest.raises(ValueError, match="no sender packs"):
        direct(own, [each for each in senders if each.rank != missing])

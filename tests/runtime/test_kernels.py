"""Kernels that move and convert bytes, and whole random steps, against `execute.py` and torch.

Without a GPU the kernels run in Triton's interpreter, which is not right about floating point:
float32 becomes bfloat16 by truncation, and FP8 by a conversion that rounds wrongly and does not
saturate; codes that are NaN do not read as NaN. There, values are such that nothing is rounded, or
only scales, layout and digests are compared. On CUDA every byte is.
"""

from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.runtime.kernel_steps import (
    CUDA,
    DEVICE,
    assert_receiver_digests,
    assert_sender_digests,
    assert_step,
    blanked,
    by_kernels,
    deliver,
    different,
    placed,
    ranks,
    storage_of,
    totals,
)
from tests.runtime.random_transfers import TRANSFERS, Transfer
from tests.runtime.small_plans import (
    DIGEST,
    Buffers,
    Holding,
    Ints,
    Region,
    Shard,
    blank,
    box,
    contiguous,
    edge,
    filled,
    plainly,
    plan,
    whole_plan,
)
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.execute import run_fills
from tranship.runtime.kernels.rounds import bind_kernels
from tranship.runtime.program import program
from tranship.schema.dtypes import ITEM_SIZE, DType
from tranship.schema.manifest import Side
from tranship.schema.plan import FillEdge, Op, Place, PlanSide, TransferPlan

# --- random steps -------------------------------------------------------------------------------

UNROUNDED = ("copy", "passthrough")
EXAMPLES = 10 if CUDA else 3


@pytest.mark.parametrize("kind", TRANSFERS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), shift=st.sampled_from([0, 1, 3, 16]))
def test_random_steps_leave_the_bytes_and_digests_of_torch(
    kind: str, data: st.DataObject, shift: int
) -> None:
    transfer = data.draw(TRANSFERS[kind])
    if CUDA or kind in UNROUNDED:
        assert_step(transfer.plan, transfer.sender, transfer.expected, shift=shift)
    else:
        assert_scales_and_digests(transfer, shift)


def assert_scales_and_digests(transfer: Transfer, shift: int) -> None:
    """Run a step whose codes the interpreter may round wrongly."""
    wanted = placed(transfer.expected, shift)
    found = blanked(wanted)
    by_kernels(transfer.plan, placed(transfer.sender, shift), found)
    for rank, own in wanted.items():
        scales = own.get("w_scale")
        if scales is not None and scales.dtype != torch.bfloat16:
            assert different(found, {rank: {"w_scale": scales}}) == []


# --- copies -------------------------------------------------------------------------------------

BITS = (DType.U8, DType.I16, DType.I32, DType.I64)

each_size = pytest.mark.parametrize("dtype", BITS)


def strided(shape: Ints, *inner_first: int, gap: int = 0, offset: int = 0) -> Region:
    """Lay a box out with its dims in this order from the innermost on, `gap` elements apart."""
    strides, stride = [0] * len(shape), 1
    for dim in inner_first or range(len(shape))[::-1]:
        strides[dim] = stride
        stride = stride * shape[dim] + gap
    return Region(offset, tuple(strides), offset + stride)


def random_bits(shape: Ints, dtype: DType, seed: int = 0) -> Tensor:
    """Draw any bytes."""
    generator = torch.Generator().manual_seed(seed)
    size = (*shape, ITEM_SIZE[dtype])
    drawn = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    return drawn.view(torch_dtype(dtype)).reshape(shape)


def held(shape: Ints, dtype: DType, region: Region) -> Holding:
    """Hold a whole tensor on one rank."""
    return Holding(shape, dtype, (Shard(box((0,) * len(shape), shape), region),))


def copy(shape: Ints, dtype: DType, source: Region, target: Region, shift: int = 0) -> None:
    """Copy a tensor from one layout to another; no other byte may change."""
    sender, receiver = held(shape, dtype, source), held(shape, dtype, target)
    dense = random_bits(shape, dtype)
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.COPY)])
    assert_step(made, filled(sender, dense), filled(receiver, dense), shift=shift)


@each_size
@pytest.mark.parametrize("row", [24, 64, 1000, 5000])
def test_rows_are_copied(row: int, dtype: DType) -> None:
    shape = (300 if row == 24 else 7, row // ITEM_SIZE[dtype])
    padded = strided(shape, gap=max(8 // ITEM_SIZE[dtype], 1))
    copy(shape, dtype, padded, padded)
    copy(shape, dtype, strided(shape, gap=3, offset=1), contiguous(shape))


@each_size
def test_transposed_boxes_are_copied_both_ways(dtype: DType) -> None:
    shape = (65, 130)
    copy(shape, dtype, contiguous(shape), strided(shape, 0, 1))
    copy(shape, dtype, strided(shape, 0, 1, gap=1), contiguous(shape))


@each_size
def test_boxes_strided_in_five_dims_are_copied(dtype: DType) -> None:
    shape = (2, 3, 2, 4, 5)
    copy(shape, dtype, strided(shape, 2, 0, 4, 1, 3, gap=1), strided(shape, 4, 3, 2, 1, 0, gap=2))
    copy(shape, dtype, strided(shape, 4, 3, 1, 0, 2), strided(shape, 3, 4, 0, 2, 1, offset=5))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((4, 6, 8), DType.I16),
        ((150_000,), DType.U8),
        ((65_536 * 2,), DType.U8),
        ((8_191, 9), DType.U8),
        ((2, 4_097), DType.I64),
        ((1,), DType.I32),
    ],
)
def test_boxes_without_gaps_are_copied(shape: Ints, dtype: DType) -> None:
    copy(shape, dtype, contiguous(shape), contiguous(shape))


@pytest.mark.parametrize(
    ("dtype", "shift"), [(dtype, shift) for dtype in BITS[:3] for shift in (1, 2, 4, 8)]
)
def test_copies_start_at_any_element(dtype: DType, shift: int) -> None:
    shape = (19, 40)
    copy(shape, dtype, contiguous(shape), contiguous(shape), shift)
    copy(shape, dtype, strided(shape, gap=8), strided(shape, gap=16), shift)
    copy(shape, dtype, strided(shape, 0, 1, offset=shift), contiguous(shape), shift)


# --- constants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize(
    ("sizes", "strides"), [((5001,), (1,)), ((2, 3, 70), (400, 130, 1)), ((67, 3), (1, 80))]
)
def test_constants_of_every_dtype_are_written(sizes: Ints, strides: Ints, value: int) -> None:
    fills = tuple(
        FillEdge(
            buffer=dtype.value, dtype=dtype, offset=5, sizes=sizes, strides=strides, value=value
        )
        for dtype in DType
    )
    side = PlanSide(manifest=DIGEST, world_size=1)
    made = whole_plan([], sender=side, receiver=side).model_copy(update={"fills": fills})
    own = program(made, Side.RECEIVER, 0)
    memory = placed({0: {dtype.value: blank(5010, dtype) for dtype in DType}})
    expected = placed(memory)
    for dtype, tensor in zip(DType, expected[0].values(), strict=True):
        ones = torch.ones((), dtype=torch.float64).to(torch_dtype(dtype))
        start = int(tensor.storage_offset()) + 5
        tensor.as_strided(sizes, strides, start).copy_(ones if value else torch.zeros_like(ones))
    reference = placed(memory)
    run_fills(own, [reference[0][use.name] for use in own.buffers])
    slots = [torch.zeros(item.slot_size, dtype=torch.uint8, device=DEVICE) for item in own.rounds]
    bind_kernels(own, [memory[0][use.name] for use in own.buffers], slots).begin()
    for name, tensor in expected[0].items():
        assert torch.equal(storage_of(memory[0][name]), storage_of(tensor)), name
        assert torch.equal(storage_of(reference[0][name]), storage_of(tensor)), name


# --- casts --------------------------------------------------------------------------------------

FLOATS = (DType.F32, DType.BF16, DType.F16)
CASTS = [
    *((a, b) for a, b in product(FLOATS, FLOATS) if a is not b),
    (DType.F8E4M3FN, DType.F32),
    (DType.F8E5M2, DType.BF16),
    (DType.F32, DType.F8E4M3FN),
    (DType.F64, DType.BF16),
    (DType.F32, DType.F64),
]
CAST_SHAPES: dict[Ints, tuple[Region, Region]] = {
    (4999,): (contiguous((4999,)), contiguous((4999,))),
    (64, 256): (strided((64, 256), gap=16), strided((64, 256), gap=32)),
    (7, 13): (strided((7, 13), gap=1, offset=3), strided((7, 13), 0, 1)),
    (2, 33, 30): (strided((2, 33, 30), 0, 2, 1), contiguous((2, 33, 30))),
}


def numbers(shape: Ints, source: DType, target: DType) -> Tensor:
    """Draw values that no float changes, and on CUDA others where the target is no code."""
    generator = torch.Generator().manual_seed(1)
    eighths = torch.randint(-8, 9, shape, generator=generator) / 8
    values = eighths * torch.randint(-3, 4, shape, generator=generator).exp2()
    if CUDA and target is not DType.F8E4M3FN and source not in (DType.F8E4M3FN, DType.F8E5M2):
        values = torch.randn(shape, generator=generator) * (values * 4).exp2()
        values.view(-1)[:5] = torch.tensor([torch.inf, -torch.inf, 1e-40, -0.0, 1e38])
    return values.to(torch_dtype(source))


@pytest.mark.parametrize("shape", CAST_SHAPES, ids=str)
@pytest.mark.parametrize(("source", "target"), CASTS)
def test_values_are_cast_as_torch_casts_them(source: DType, target: DType, shape: Ints) -> None:
    dense = numbers(shape, source, target)
    sender = held(shape, source, CAST_SHAPES[shape][0])
    receiver = held(shape, target, CAST_SHAPES[shape][1])
    expected = filled(receiver, dense.to(torch_dtype(target)))
    for place in Place if shape == (7, 13) or CUDA else [Place.SENDER]:
        made = plan(sender, receiver, [edge(sender, receiver, op=Op.CAST, place=place)])
        for shift in (0, 1) if shape == (4999,) or CUDA else (1,):
            assert_step(made, filled(sender, dense), expected, shift=shift)


# --- rounds and steps ---------------------------------------------------------------------------


def two_rounds() -> tuple[TransferPlan, Holding]:
    """Copy a tensor in one round, and cast it in the next, from two senders to one receiver."""
    shape = (12, 40)
    sender = plainly(shape, DType.F32, [box((0, 0), (5, 40)), box((5, 0), (7, 40))])
    receiver = plainly(shape, DType.F32, [box((0, 0), shape)])
    cast = plainly(shape, DType.F64, [box((0, 0), shape)])
    later = edge(sender, cast, op=Op.CAST, place=Place.RECEIVER)
    other = {"receiver": later.receiver.model_copy(update={"buffer": "v"}), "round": 1}
    edges = [edge(sender, receiver, op=Op.COPY), later.model_copy(update=other)]
    return plan(sender, receiver, edges, rounds=2), sender


def expected_rounds(dense: Tensor) -> Buffers:
    return placed({0: {"w": dense.reshape(-1), "v": dense.double().reshape(-1)}})


def test_every_round_has_digests_of_its_own() -> None:
    made, sender = two_rounds()
    dense = random_bits((12, 40), DType.I32).view(torch.float32)
    dense = torch.where(dense.isfinite(), dense, 0)
    wanted = expected_rounds(dense)
    found = blanked(wanted)
    by_kernels(made, placed(filled(sender, dense)), found)
    assert different(found, wanted) == []


def test_a_step_starts_from_clear_digests() -> None:
    made, holding = two_rounds()
    memory = placed(filled(holding, torch.zeros(12, 40)))
    found = blanked(expected_rounds(torch.zeros(12, 40)))
    senders, receivers = ranks(made, Side.SENDER, memory), ranks(made, Side.RECEIVER, found)
    sending, receiving = ([rank.bind() for rank in side] for side in (senders, receivers))
    for version in range(3):
        dense = torch.full((12, 40), float(version))
        for rank, own in placed(filled(holding, dense)).items():
            memory[rank]["w"].copy_(own["w"])
        for kernels in sending + receiving:
            kernels.begin()
        for number in range(2):
            for kernels in sending:
                kernels.run(number)
            deliver(number, senders, receivers)
            for kernels in receiving:
                kernels.run(number)
            for rank, kernels in zip(senders, sending, strict=True):
                assert_sender_digests(rank, kernels, number)
            for rank, kernels in zip(receivers, receiving, strict=True):
                assert_receiver_digests(rank, kernels, number)
        assert different(found, expected_rounds(dense)) == []


@pytest.mark.parametrize(
    ("byte", "bit", "counts"),
    [(0, 1, True), (799, 128, True), (800, 1, False), (896, 1, True), (2015, 64, True)],
)
def test_a_bit_that_changes_on_the_way_shows_in_the_digest(
    byte: int, bit: int, counts: bool
) -> None:
    made, holding = two_rounds()
    dense = torch.randn((12, 40), generator=torch.Generator().manual_seed(9))
    senders = ranks(made, Side.SENDER, placed(filled(holding, dense)))
    receivers = ranks(made, Side.RECEIVER, blanked(expected_rounds(dense)))
    sent: list[int] = []
    for rank in senders:
        kernels = rank.bind()
        kernels.begin()
        kernels.run(0)
        sent += totals(kernels, 0, 1)[0]
    deliver(0, senders, receivers)
    # The messages have 800 and 1120 bytes of payload, and are filled up to multiples of 128.
    receivers[0].slots[0][byte] ^= bit
    kernels = receivers[0].bind()
    kernels.begin()
    kernels.run(0)
    for digests in totals(kernels, 0, 2):
        assert [one == two for one, two in zip(sent, digests, strict=True)] == [
            not counts or byte >= 896,
            not counts or byte < 896,
        ]

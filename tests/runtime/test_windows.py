"""Windows that cut blocks, boxes in steps over blocks: where scales are counted with care."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runtime.direct_steps import step_directly
from tests.runtime.small_plans import (
    Box,
    Buffers,
    Scaling,
    assert_same_memory,
    box,
    edge,
    emptied,
    filled,
    in_blocks,
    plainly,
    plan,
)
from tranship.runtime.execute import simulate
from tranship.runtime.program import program
from tranship.runtime.quantization import dequantize, quantize
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Side
from tranship.schema.plan import Op, Place, TransferPlan, Window

BLOCKS = Scaling((4, 4), (0, 0), DType.F32)
SHAPE = (12, 8)
WHOLE = box((0, 0), SHAPE)


def rows(*cuts: int) -> list[Box]:
    """Cut SHAPE into boxes of whole rows, at 0, `cuts` and 12."""
    return [box((a, 0), (b - a, SHAPE[1])) for a, b in pairwise([0, *cuts, SHAPE[0]])]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def quantized(dense: Tensor) -> tuple[Tensor, Tensor]:
    code, scale = torch.float8_e4m3fn, torch.float32
    return quantize(dense, BLOCKS.block, formula="divide", code_dtype=code, scale_dtype=scale)


def run(made: TransferPlan, sender: Buffers, expected: Buffers) -> None:
    for way in (partial(simulate, recipes={}), step_directly):
        receiver = emptied(expected)
        way(made, sender, receiver)
        assert_same_memory(receiver, expected)


def in_chunks(height: int, rounds: str = "chunk") -> dict[str, Any]:
    window = Window(start=(f"chunk * {height}", 0), extent=(height, 8))
    return {"indices": {"chunk": "0..2"}, "window": window, "round": rounds}


@pytest.mark.parametrize("place", Place)
@pytest.mark.parametrize("rounds", ["chunk", "chunk % 2"])
def test_windows_of_whole_blocks_go_in_their_rounds(place: Place, rounds: str) -> None:
    sender = plainly(SHAPE, DType.F32, rows(5))
    if place is Place.SENDER:
        sender = plainly(SHAPE, DType.F32, [WHOLE])
    receiver = in_blocks(SHAPE, DType.F8E4M3FN, [WHOLE], BLOCKS)
    how = {"op": Op.QUANTIZE, "place": place, "formula": "divide"}
    dense = numbers(*SHAPE)
    made = plan(sender, receiver, [edge(sender, receiver, **how, **in_chunks(4, rounds))], rounds=3)
    run(made, filled(sender, dense), filled(receiver, *quantized(dense)))


@pytest.mark.parametrize("place", Place)
def test_windows_may_cut_blocks_that_the_sender_holds_or_whose_amax_arrives(place: Place) -> None:
    at_sender = place is Place.SENDER
    sender = plainly(SHAPE, DType.F32, [WHOLE] if at_sender else rows(3, 7))
    receiver = in_blocks(SHAPE, DType.F8E4M3FN, [WHOLE, *rows(6)], BLOCKS)
    chunks = in_chunks(5)
    edges = [edge(sender, receiver, op=Op.QUANTIZE, place=place, formula="divide", **chunks)]
    if not at_sender:
        edges.append(edge(sender, receiver, op=Op.AMAX, **{**chunks, "window": None}))
    dense = numbers(*SHAPE)
    made = plan(sender, receiver, edges, rounds=3)
    assert [scales_written(made, rank) for rank in range(3)] == [3 * 2, 2 * 2, 2 * 2]
    run(made, filled(sender, dense), filled(receiver, *quantized(dense)))


def scales_written(made: TransferPlan, rank: int) -> int:
    """Count the scales that a receiver writes, repetitions included."""
    own = program(made, Side.RECEIVER, rank)
    scales = [use.name for use in own.buffers].index("w_scale")
    jobs = [job for one in own.rounds for job in one.jobs]
    copied = [job["inner_extent"].prod() for job in jobs if job["target"] == scales]
    computed = [job["scale_counts"].prod() for job in jobs if job["scale_target"] == scales]
    return int(sum(copied) + sum(computed))


@pytest.mark.parametrize(("block", "step"), [(4, 2), (6, 3), (1, 2), (2, 4), (5, 12)])
def test_boxes_in_steps_find_the_scales_of_their_elements(block: int, step: int) -> None:
    scaling = Scaling((block, 3), (-1 if block > 1 else 0, 0), DType.F32)
    cuts = [box((0, 0), (5, 8)), box((5, 0), (7, 8))]
    sender = in_blocks(SHAPE, DType.F8E4M3FN, cuts, scaling)
    stepped = [box((at, 0), (SHAPE[0] // step, 8), (step, 1)) for at in range(step)]
    receiver = plainly(SHAPE, DType.F32, stepped)
    counts = math.ceil((SHAPE[0] - scaling.origin[0]) / block), 3
    codes, scales = numbers(*SHAPE).to(torch.float8_e4m3fn), numbers(*counts)
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.DEQUANTIZE)])
    origin = [-start for start in scaling.origin]
    wanted = dequantize(codes, scales, scaling.block, dtype=torch.float32, origin=origin)
    run(made, filled(sender, codes, scales), filled(receiver, wanted))

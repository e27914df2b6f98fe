"""Blocks of other sizes, tensors cut otherwise, and codes that are read, by kernels and in torch.

Without a GPU values are multiples of codes, as in `test_kernels_blocks.py`. On CUDA they are also
any, and are compared with the sources of the formulas, too.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.runtime.kernel_steps import (
    CUDA,
    DEVICE,
    assert_step,
    blanked,
    by_kernels,
    cells,
    code_multiples,
    different,
    placed,
    quantized,
    ranks,
    upstream_cells,
)
from tests.runtime.small_plans import (
    Block,
    Box,
    Buffers,
    Holding,
    Ints,
    Region,
    Scaling,
    Shard,
    box,
    contiguous,
    edge,
    filled,
    in_blocks,
    plainly,
    plan,
)
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.execute import pack
from tranship.runtime.quantization import dequantize
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Side
from tranship.schema.plan import Op, Place

E4M3 = torch.float8_e4m3fn
NAN_CODE = 0x7F


@dataclass(frozen=True)
class Format:
    """A tensor and the grid in which a receiver holds it."""

    shape: Ints
    block: Block
    formula: str = "divide"
    scale: DType = DType.F32
    source: DType = DType.BF16

    @property
    def scaling(self) -> Scaling:
        return Scaling(self.block, (0,) * len(self.shape), self.scale)

    @property
    def whole(self) -> Box:
        return box((0,) * len(self.shape), self.shape)

    def data(self) -> list[Tensor]:
        """Return tensors to quantize, all but the first one on CUDA only."""
        found = [code_multiples(self.shape, self.block)]
        if CUDA:
            generator = torch.Generator().manual_seed(3)
            normal = torch.randn(self.shape, generator=generator)
            found.append(normal * 0.02)
            found.append(normal * (torch.randn(self.shape, generator=generator) * 3).exp2())
        return [values.to(torch_dtype(self.source)) for values in found]

    def holding(self, boxes: list[Box]) -> Holding:
        """Hold boxes of codes in contiguous buffers."""
        return in_blocks(self.shape, DType.F8E4M3FN, boxes, self.scaling)

    def quantize(
        self,
        sender: Holding,
        receiver: Holding,
        place: Place = Place.SENDER,
        *,
        amax: bool = False,
        shift: int = 0,
    ) -> None:
        """Run steps that quantize, and compare every byte."""
        edges = [edge(sender, receiver, op=Op.QUANTIZE, place=place, formula=self.formula)]
        if amax:
            edges.append(edge(sender, receiver, op=Op.AMAX))
        made = plan(sender, receiver, edges)
        for dense in self.data():
            codes, scales = quantized(dense, self.scaling, self.formula)
            expected = filled(receiver, codes, scales)
            assert_step(made, filled(sender, dense), expected, shift=shift)
            if CUDA:
                self.assert_upstream(dense, codes, scales)

    def assert_upstream(self, dense: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Compare with the sources, run on the GPU."""
        origin = (0,) * len(self.shape)
        wanted = upstream_cells(dense.to(DEVICE), self.block, origin, self.formula, E4M3)
        assert torch.equal(codes.view(torch.uint8), wanted[0].view(torch.uint8).cpu())
        kept = wanted[1].to(torch_dtype(self.scale)).view(torch.uint8).cpu()
        assert torch.equal(scales.reshape(-1).view(torch.uint8), kept)


def rows(shape: Ints, *cuts: int) -> list[Box]:
    """Cut a tensor along its first dim."""
    ends = [*cuts, shape[0]]
    starts = [0, *cuts]
    return [
        box((start, *(0 for _ in shape[1:])), (end - start, *shape[1:]))
        for start, end in zip(starts, ends, strict=True)
    ]


E8M0 = ("power_of_two", DType.F8E8M0FNU)
FORMATS = {
    "ragged edges": Format((200, 144), (128, 128)),
    "one row over": Format((129, 128), (128, 128), "reciprocal"),
    "less than a block high": Format((100, 2064), (128, 128), "rescale"),
    "per row": Format((40, 300), (1, "all"), "reciprocal"),
    "per row, wider than a tile": Format((2, 3000), (1, "all")),
    "per tensor": Format((150, 200), ("all", "all"), "rescale"),
    "MXFP8": Format((40, 256), (1, 32), *E8M0),
    "groups of 128": Format((20, 384), (1, 128)),
    "groups of 128 and a rest": Format((20, 200), (1, 128), "reciprocal", DType.BF16),
    "32 x 32": Format((64, 96), (32, 32), *E8M0),
    "3 x 5": Format((10, 13), (3, 5), "rescale", DType.BF16),
    "blocks larger than tiles": Format((300, 300), (256, 256)),
    "float32": Format((130, 140), (64, 64), "reciprocal", DType.F32, DType.F32),
    "float16": Format((70, 70), (64, 64), "divide", DType.F32, DType.F16),
    "experts": Format((3, 128, 192), (1, 128, 64)),
    "deep blocks": Format((3, 20, 40), (2, 16, 16), "power_of_two"),
    "a vector": Format((300,), (128,)),
}

each_format = pytest.mark.parametrize("name", FORMATS)


@each_format
def test_senders_quantize_what_receivers_hold_in_any_format(name: str) -> None:
    form = FORMATS[name]
    form.quantize(plainly(form.shape, form.source, [form.whole]), form.holding([form.whole]))


@each_format
def test_receivers_assemble_and_quantize_any_format(name: str) -> None:
    form = FORMATS[name]
    cut = -(-form.shape[0] * 3 // 8)
    sender = plainly(form.shape, form.source, rows(form.shape, cut))
    form.quantize(sender, form.holding([form.whole]), Place.RECEIVER)


EVERY_KERNEL = ["ragged edges", "per row", "groups of 128", "blocks larger than tiles"]
"""Formats whose cells are found in every way: in a tile, by row, by group, over several tiles."""


@pytest.mark.parametrize("name", EVERY_KERNEL)
def test_zeros_keep_their_signs_in_any_format(name: str) -> None:
    form = FORMATS[name]
    dense = code_multiples(form.shape, form.block).bfloat16()
    dense[::2] *= torch.tensor(-0.0)
    assert bool(dense[::2].signbit().any())
    sender = plainly(form.shape, form.source, [form.whole])
    receiver = form.holding([form.whole])
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.QUANTIZE, formula="divide")])
    wanted = quantized(dense, form.scaling, "divide")
    assert_step(made, filled(sender, dense), filled(receiver, *wanted))


@pytest.mark.parametrize(
    ("value", "amax"), [(torch.nan, False), (torch.nan, True), (-torch.inf, True)]
)
@pytest.mark.parametrize("name", EVERY_KERNEL)
def test_a_value_that_is_not_finite_poisons_its_cell_alone(
    name: str, value: float, amax: bool
) -> None:
    form = FORMATS[name]
    dense = code_multiples(form.shape, form.block).bfloat16()
    dense[3, 5] = value
    sender = plainly(form.shape, form.source, rows(form.shape, 7))
    receiver = form.holding([form.whole])
    edges = [
        edge(sender, receiver, op=Op.QUANTIZE, place=Place.RECEIVER, formula=form.formula),
        edge(sender, receiver, op=Op.AMAX),
    ]
    wanted = placed(filled(receiver, *quantized(dense, form.scaling, form.formula)))
    found = blanked(wanted)
    made = plan(sender, receiver, edges[: 1 + amax])
    by_kernels(made, placed(filled(sender, dense)), found)
    codes, others = (own[0]["w"].view(torch.uint8).view(form.shape) for own in (found, wanted))
    assert not CUDA or different(found, wanted) == []
    poisoned = others == NAN_CODE
    assert bool(poisoned[3, 5])
    assert torch.equal(codes[~poisoned], others[~poisoned])
    # The interpreter has a code of its own for NaN.
    assert bool((codes[poisoned] == codes[3, 5]).all())
    assert different(found, {0: {"w_scale": wanted[0]["w_scale"]}}) == []


def test_amaxes_of_an_earlier_step_do_not_count() -> None:
    form = FORMATS["blocks larger than tiles"]
    sender, receiver = plainly(form.shape, form.source, [form.whole]), form.holding([form.whole])
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.QUANTIZE, formula="divide")])
    held = placed(filled(sender, code_multiples(form.shape, form.block).bfloat16()))
    rank = ranks(made, Side.SENDER, held)[0]
    kernels = rank.bind()
    for _ in range(2):
        kernels.begin()
        kernels.run(0)
        expected = rank.slots[0].clone()
        pack(rank.program.rounds[0], rank.buffers, expected)
        assert torch.equal(rank.slots[0], expected)
        held[0]["w"].mul_(0.125)


@pytest.mark.parametrize("name", ["ragged edges", "3 x 5", "per row"])
def test_amax_edges_bring_what_receivers_do_not_hold(name: str) -> None:
    form = FORMATS[name]
    height, width = form.shape
    sender = plainly(form.shape, form.source, rows(form.shape, height // 3))
    receivers = [box((0, 0), (height, width // 2)), box((0, width // 2), (height, -(-width // 2)))]
    form.quantize(sender, form.holding(receivers), Place.RECEIVER, amax=True)


def test_a_region_may_start_within_a_block() -> None:
    form = Format((200, 300), (64, 128))
    sender = plainly(form.shape, form.source, [form.whole])
    form.quantize(sender, form.holding([box((50, 30), (150, 270))]))
    form.quantize(sender, form.holding([box((70, 0), (30, 130))]), Place.RECEIVER, amax=True)


@pytest.mark.parametrize("shift", [0, 1, 8])
def test_a_transposed_source_is_quantized_along_its_logical_dims(shift: int) -> None:
    form = Format((140, 200), (128, 128))
    transposed = Region(0, (1, 140), 140 * 200)
    sender = Holding(form.shape, form.source, (Shard(form.whole, transposed),))
    form.quantize(sender, form.holding([form.whole]), shift=shift)


@pytest.mark.parametrize("offset", [1, 4, 8, 16])
@pytest.mark.parametrize("place", [Place.SENDER, Place.RECEIVER])
def test_slices_with_any_offset_are_quantized(offset: int, place: Place) -> None:
    form = Format((130, 128), (64, 64))
    held = Region(offset, (128 + offset, 1), offset + 130 * (128 + offset))
    sender = Holding(form.shape, form.source, (Shard(form.whole, held),))
    shard = Shard(form.whole, held, contiguous((3, 2)))
    receiver = Holding(form.shape, DType.F8E4M3FN, (shard,), form.scaling)
    form.quantize(sender, receiver, place)


def test_scales_may_lie_in_any_order() -> None:
    form = Format((130, 70), (64, 64))
    scales = Region(1, (2, 7), 20)
    shard = Shard(form.whole, contiguous(form.shape), scales)
    receiver = Holding(form.shape, DType.F8E4M3FN, (shard,), form.scaling)
    for place in Place:
        sender = plainly(form.shape, form.source, [form.whole])
        form.quantize(sender, receiver, place)


# --- codes --------------------------------------------------------------------------------------


def random_codes(shape: Ints, seed: int) -> Tensor:
    """Draw finite codes, of values without mantissas longer than bfloat16's."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 0x7F, shape, generator=generator)
    codes += 128 * torch.randint(0, 2, shape, generator=generator)
    return codes.to(torch.uint8).view(E4M3)


def power_scales(form: Format, seed: int) -> Tensor:
    """Draw a power of two for every block, on CUDA any scale that the dtype holds."""
    generator = torch.Generator().manual_seed(seed)
    counts = [
        1 if length == "all" else -(-size // length)
        for size, length in zip(form.shape, form.block, strict=True)
    ]
    scales = torch.randint(-3, 4, counts, generator=generator).float().exp2()
    if CUDA and form.scale is not DType.F8E8M0FNU:
        scales *= 1 + torch.rand(counts, generator=generator)
    return scales.to(torch_dtype(form.scale))


CODED = {
    "blocks": Format((200, 144), (128, 128)),
    "blocks with bfloat16 scales": Format((100, 200), (64, 64), scale=DType.BF16),
    "rows": Format((30, 300), (1, "all")),
    "MXFP8": Format((20, 256), (1, 32), *E8M0),
    "a tensor": Format((50, 60), ("all", "all")),
    "experts": Format((2, 70, 130), (1, 64, 64)),
}


@pytest.mark.parametrize("target", [DType.F32, DType.BF16, DType.F16])
@pytest.mark.parametrize("name", CODED)
def test_codes_become_values(name: str, target: DType) -> None:
    form = CODED[name]
    codes, scales = random_codes(form.shape, 4), power_scales(form, 5)
    sender = in_blocks(form.shape, DType.F8E4M3FN, [form.whole], form.scaling)
    receiver = plainly(form.shape, target, rows(form.shape, form.shape[0] // 2))
    wanted = dequantize(codes, scales, form.block, dtype=torch_dtype(target))
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.DEQUANTIZE)])
    assert_step(made, filled(sender, codes, scales), filled(receiver, wanted))


def test_codes_with_odd_strides_become_values() -> None:
    form = CODED["blocks"]
    codes, scales = random_codes(form.shape, 4), power_scales(form, 5)
    held = Region(3, (1, 201), 3 + 201 * 144)
    shard = Shard(form.whole, held, contiguous((2, 2)))
    sender = Holding(form.shape, DType.F8E4M3FN, (shard,), form.scaling)
    receiver = plainly(form.shape, DType.BF16, [box((50, 7), (150, 131))])
    wanted = dequantize(codes, scales, form.block, dtype=torch.bfloat16)
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.DEQUANTIZE)])
    assert_step(made, filled(sender, codes, scales), filled(receiver, wanted), shift=1)


def read_codes(form: Format, codes: Tensor, source: DType, scales: Tensor, target: DType) -> None:
    """Dequantize; what is NaN may be any NaN."""
    sender = in_blocks(form.shape, source, [form.whole], form.scaling)
    receiver = plainly(form.shape, target, [form.whole])
    wanted = dequantize(codes, scales, form.block, dtype=torch_dtype(target))
    expected = placed(filled(receiver, wanted))
    found = blanked(expected)
    made = plan(sender, receiver, [edge(sender, receiver, op=Op.DEQUANTIZE)])
    by_kernels(made, placed(filled(sender, codes, scales)), found)
    assert different(found, expected) == []


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_every_e8m0_scale_is_read() -> None:
    form = Format((256, 32), (1, "all"), *E8M0)
    codes = random_codes(form.shape, 8)
    scales = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu)[:, None]
    read_codes(form, codes, DType.F8E4M3FN, scales, DType.F32)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="the interpreter misreads codes that are not finite")
@pytest.mark.parametrize("target", [DType.F32, DType.BF16, DType.F16])
@pytest.mark.parametrize("source", [DType.F8E4M3FN, DType.F8E5M2])
def test_every_code_is_read(source: DType, target: DType) -> None:
    form = Format((8, 256), (1, 64))
    codes = torch.arange(256, dtype=torch.uint8).repeat(8, 1).view(torch_dtype(source))
    read_codes(form, codes, source, power_scales(form, 9), target)


REQUANTIZED: dict[str, tuple[Block, Block]] = {
    "rows to blocks": ((1, "all"), (64, 64)),
    "small to large": ((32, 32), (64, 64)),
    "blocks to groups": ((64, 64), (1, 32)),
}


@pytest.mark.parametrize("place", list(Place))
@pytest.mark.parametrize("name", REQUANTIZED)
def test_codes_change_from_one_grid_to_another(name: str, place: Place) -> None:
    shape: Ints = (128, 192)
    source, target = (Format(shape, block, "power_of_two") for block in REQUANTIZED[name])
    sender = in_blocks(shape, DType.F8E4M3FN, rows(shape, 64), source.scaling)
    receiver = in_blocks(shape, DType.F8E4M3FN, [target.whole], target.scaling)
    codes = random_codes(shape, 6).float()
    for cell in cells(shape, target.block):
        codes[cell][0, 0] = 448.0
    scales = power_scales(source, 7)
    if not CUDA:
        scales = torch.full_like(scales, 0.25)  # With one scale for all, no code is rounded.
    held = codes.to(E4M3), scales
    dense = dequantize(*held, source.block, dtype=torch.float32)
    how = edge(sender, receiver, op=Op.REQUANTIZE, place=place, formula="power_of_two")
    expected: Buffers = filled(receiver, *quantized(dense, target.scaling, "power_of_two"))
    assert_step(plan(sender, receiver, [how]), filled(sender, *held), expected)

"""Scales lie as DeepGEMM itself lays them out, where it is installed."""

import importlib
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runtime.live_models import SENTINEL
from tests.runtime.packed_cases import whole_storage
from tranship.runtime.kernels.packed import bind_packed
from tranship.runtime.packed import PackedScales, receive_packed
from tranship.schema.layouts import PACKED_BLOCK, packed_scales

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("deep_gemm") is None, reason="no DeepGEMM"),
]

SHAPES = [(128, 128), (64, 2048), (576, 7168), (2112, 7168), (3, 256, 1024), (4, 4096, 7168)]
"""Shapes of codes, experts outermost; some have rows beyond whole blocks."""


def powers_of_two(shape: tuple[int, ...]) -> Tensor:
    """Return random float32 scales of codes of this shape."""
    *outer, rows, columns = shape
    blocks = (*outer, -(-rows // PACKED_BLOCK), -(-columns // PACKED_BLOCK))
    return torch.randint(-100, 100, blocks, device="cuda").float().exp2()


def received(scales: Tensor, shape: tuple[int, ...]) -> PackedScales:
    """Return scales in the engine's memory, written by this project's kernels."""
    sizes, strides = packed_scales(shape)
    engine = torch.empty_strided(sizes, strides, dtype=torch.int32, device="cuda")
    whole_storage(engine).fill_(SENTINEL)
    found = receive_packed("scales", engine, shape)
    found.scales[..., : scales.shape[-1]] = scales.to(torch.float8_e8m0fnu)
    bind_packed([found], engine.device).run()
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_scales_are_those_that_deepgemm_packs(shape: tuple[int, ...]) -> None:
    library: Any = importlib.import_module("deep_gemm.utils.layout")
    scales = powers_of_two(shape)
    rows = torch.arange(shape[-2], device="cuda") // PACKED_BLOCK
    wanted: Tensor = library.get_mn_major_tma_aligned_packed_ue8m0_tensor(
        scales.index_select(-2, rows)
    )
    found = received(scales, shape).engine
    assert found.shape == wanted.shape
    steps = zip(found.stride(), wanted.stride(), found.shape, strict=True)
    assert all(own == theirs for own, theirs, size in steps if size > 1)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_hopper_reads_float32_scales_of_blocks_as_they_are(shape: tuple[int, ...]) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("not a Hopper")
    library: Any = importlib.import_module("deep_gemm")
    *outer, rows, columns = shape
    scales = powers_of_two(shape).reshape(-1, -(-rows // PACKED_BLOCK), -(-columns // PACKED_BLOCK))
    found: Tensor = library.transform_sf_into_required_layout(
        sf=scales,
        mn=rows,
        k=columns,
        recipe=(1, PACKED_BLOCK, PACKED_BLOCK),
        num_groups=outer[0] if outer else 1,
        is_sfa=False,
        disable_ue8m0_cast=False,
    )
    assert found.data_ptr() == scales.data_ptr()
    assert (found.dtype, found.shape, found.stride()) == (
        scales.dtype,
        scales.shape,
        scales.stride(),
    )

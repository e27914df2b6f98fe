"""Where the scales of codes lie, element by element."""

from itertools import product

import pytest
import torch

from tranship.runtime.frameworks.megatron.block_scaled import (
    BlockScaled,
    CutBlock,
    scale_padding,
    scale_piece,
)
from tranship.schema.manifest import Part
from tranship.schema.records import Ints, PieceRecord


def held(rows: int, columns: int) -> BlockScaled:
    """Codes and scales, whose rows are padded to a multiple of four."""
    padded = -(-columns // 128 // 4) * 4
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    return BlockScaled(codes, torch.empty(-(-rows // 128), padded))


def piece_at(start: Ints, extent: Ints, place: Ints, columns: int) -> PieceRecord:
    offset = place[0] * columns + place[1]
    return PieceRecord("w", Part.VALUE, start, extent, (1, 1), offset, (columns, 1), (0, 0))


@pytest.mark.parametrize(
    ("codes", "shape", "start", "extent", "place"),
    [
        ((256, 384), (256, 256), (0, 0), (256, 256), (0, 128)),
        ((384, 640), (512, 1024), (128, 512), (256, 512), (128, 128)),
        ((300, 200), (300, 200), (0, 0), (300, 200), (0, 0)),
        ((428, 128), (684, 128), (384, 0), (300, 128), (128, 0)),
    ],
)
def test_every_code_keeps_the_scale_of_its_block(
    codes: Ints, shape: Ints, start: Ints, extent: Ints, place: Ints
) -> None:
    scaled = held(*codes)
    found = scale_piece(piece_at(start, extent, place, codes[1]), shape, scaled)
    assert found.part is Part.SCALE
    width = scaled.scales.shape[1]
    seen: set[tuple[int, int]] = set()
    for row, column in product(range(0, extent[0], 4), range(0, extent[1], 4)):
        block = (start[0] + row) // 128, (start[1] + column) // 128
        number = block[0] - found.start[0], block[1] - found.start[1]
        lies = found.offset + number[0] * found.strides[0] + number[1] * found.strides[1]
        assert lies == (place[0] + row) // 128 * width + (place[1] + column) // 128
        seen.add(number)
    assert seen == set(product(*map(range, found.extent)))


@pytest.mark.parametrize(
    ("shape", "start", "extent", "place"),
    [
        ((512, 256), (64, 0), (128, 256), (0, 0)),
        ((512, 256), (0, 0), (128, 256), (64, 0)),
        ((512, 256), (0, 0), (64, 256), (0, 0)),
        ((64, 256), (0, 0), (64, 256), (0, 0)),
        ((512, 256), (0, 0), (320, 256), (0, 0)),
    ],
)
def test_parts_of_blocks_are_refused(shape: Ints, start: Ints, extent: Ints, place: Ints) -> None:
    with pytest.raises(CutBlock):
        scale_piece(piece_at(start, extent, place, 256), shape, held(320, 256))


def test_scales_behind_the_last_column_are_padding() -> None:
    padding = scale_padding(held(300, 700))
    assert padding is not None
    assert (padding.offset, padding.sizes, padding.strides) == (6, (3, 2), (8, 1))
    assert scale_padding(held(300, 1024)) is None

"""What others do to weights before they move them: quantize tensor by tensor, fill buckets.

Written anew from descriptions of slime, miles, AReaL and awex. Nothing here knows where the bytes
go; that is in `peer_styles.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import triton
import triton.language as tl
from shapes import SCALE_SUFFIX
from torch import Tensor

Part: TypeAlias = tuple[str, Tensor]
"""A tensor by its checkpoint's name: weights in BF16, codes, or scales."""

BLOCK = 128
LARGEST = 448.0
AMAX_FLOOR = 1e-10
BUCKET_BYTES = 512 << 20
"""The bucket that slime fills by default."""

# --- Quantization, one launch per tensor ----------------------------------------------------------


@triton.jit
def _quantize_tile(
    values,
    codes,
    scales,
    value_row,
    value_column,
    code_row,
    code_column,
    scale_row,
    scale_column,
    rows,
    columns,
    floor,
    smallest,
    largest,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """Quantize one tile; names ending in `row` or `column` are strides, in elements."""
    tile_row, tile_column = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = (tile_row * TILE_ROWS + tl.arange(0, TILE_ROWS))[:, None]
    column = (tile_column * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS))[None, :]
    inside = (row < rows) & (column < columns)
    value = tl.load(values + row * value_row + column * value_column, mask=inside, other=0.0)
    value = value.to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value)), floor) / largest
    code = tl.clamp(value * (1.0 / scale), smallest, largest).to(codes.dtype.element_ty)
    tl.store(codes + row * code_row + column * code_column, code, mask=inside)
    tl.store(scales + tile_row * scale_row + tile_column * scale_column, scale)


def quantize_one(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight in tiles of 128 x 128, in one launch, into new tensors.

    Args:
        weight: BF16 `[rows, columns]`.

    Returns:
        Codes, float8_e4m3fn `[rows, columns]`, and scales, float32, one per tile.
    """
    rows, columns = weight.shape
    grid = triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK)
    codes = torch.empty((rows, columns), dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty(grid, dtype=torch.float32, device=weight.device)
    strides = *weight.stride(), *codes.stride(), *scales.stride()
    numbers = rows, columns, AMAX_FLOOR, -LARGEST, LARGEST
    tiling = {"TILE_ROWS": BLOCK, "TILE_COLUMNS": BLOCK, "num_warps": 8, "num_stages": 2}
    _quantize_tile[grid](weight, codes, scales, *strides, *numbers, **tiling)
    return codes, scales


def quantize_loop(weights: Sequence[Part]) -> list[tuple[Tensor, Tensor]]:
    """Quantize all weights, as slime, miles and AReaL do: one launch and two allocations each."""
    return [quantize_one(weight) for _, weight in weights]


def quantized_parts(weights: Sequence[Part]) -> list[Part]:
    """Quantize weights of linear layers; each is followed by its scales. Others stay."""
    parts: list[Part] = []
    for name, weight in weights:
        if is_quantized(name, weight):
            codes, scales = quantize_one(weight)
            parts += [(name, codes), (name + SCALE_SUFFIX, scales)]
        else:
            parts.append((name, weight))
    return parts


def is_quantized(name: str, weight: Tensor) -> bool:
    """Whether a checkpoint in FP8 holds this weight quantized: those of linear layers."""
    return weight.ndim == 2 and name.endswith("_proj.weight")


# --- Buckets --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """Where a part lies in a bucket."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Bucket:
    """Parts one after another in one tensor of bytes."""

    flat: Tensor
    members: tuple[Member, ...]

    def parts(self) -> Iterator[Part]:
        """Yield views of the parts."""
        for member in self.members:
            place = self.flat[member.start : member.start + member.size]
            yield member.name, place.view(member.dtype).view(member.shape)


def groups(
    parts: Sequence[Part], bucket_bytes: int, sent: Callable[[Part], int]
) -> Iterator[list[Part]]:
    """Cut a list where the next part would not fit; a larger one is alone.

    Scales stay with the weight before them, so that senders who quantize and receivers agree.

    Args:
        parts: In the order in which they are sent.
        bucket_bytes: Most bytes of a group.
        sent: How many bytes are sent of a part.
    """
    group: list[Part] = []
    size = 0
    for bundle in _bundles(parts):
        more = sum(map(sent, bundle))
        if group and size + more > bucket_bytes:
            yield group
            group, size = [], 0
        group += bundle
        size += more
    if group:
        yield group


def _bundles(parts: Sequence[Part]) -> list[list[Part]]:
    """Each weight with its scales, if they are there."""
    bundles: list[list[Part]] = []
    for part in parts:
        if part[0].endswith(SCALE_SUFFIX):
            bundles[-1].append(part)
        else:
            bundles.append([part])
    return bundles


def bytes_of(part: Part) -> int:
    """What is sent of a part that is sent as it is."""
    return part[1].nbytes


def bytes_quantized(part: Part) -> int:
    """What is sent of a weight that `quantized` prepares: codes and scales."""
    name, weight = part
    if not is_quantized(name, weight):
        return weight.nbytes
    rows, columns = weight.shape
    return weight.numel() + 4 * triton.cdiv(rows, BLOCK) * triton.cdiv(columns, BLOCK)


def layout(parts: Sequence[Part]) -> tuple[Member, ...]:
    """Lay parts out one after another."""
    members: list[Member] = []
    start = 0
    for name, tensor in parts:
        members.append(Member(name, tensor.dtype, tuple(tensor.shape), start, tensor.nbytes))
        start += tensor.nbytes
    return tuple(members)


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor, uint8 `[bytes]`."""
    return tensor.view(-1).view(torch.uint8)


def one_bucket(parts: Sequence[Part]) -> Bucket:
    """Copy parts into one tensor with `torch.cat`."""
    return Bucket(torch.cat([as_bytes(tensor) for _, tensor in parts]), layout(parts))


def concatenate(parts: Sequence[Part], bucket_bytes: int = BUCKET_BYTES) -> list[Bucket]:
    """Copy parts into buckets of at most this size, as slime does."""
    return [one_bucket(group) for group in groups(parts, bucket_bytes, bytes_of)]


@dataclass(frozen=True)
class Prepare:
    """What a sender does to weights before it sends them, and how many bytes it then sends."""

    parts: Callable[[Sequence[Part]], list[Part]]
    sent: Callable[[Part], int]


plain = Prepare(parts=list, sent=bytes_of)
quantized = Prepare(parts=quantized_parts, sent=bytes_quantized)


def load(parts: Iterable[Part], parameters: Mapping[str, Tensor]) -> None:
    """Copy parts into the parameters of their names, one by one, as a loader does."""
    for name, tensor in parts:
        parameters[name].copy_(tensor)

"""Scales that an engine holds packed: received as they are declared, then repeated for its kernels.

What a manifest declares of packed scales is no memory of the engine's: the runtime sets it aside,
a byte for each block of codes, and programs write it like any other buffer. When all of it is
there, the engine's memory is written from it, and compared with it. `schema/layouts.py` defines
both forms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tranship.schema.layouts import PACKED_BLOCK, declared_scales


@dataclass(frozen=True, slots=True)
class PackedScales:
    """The two forms of one buffer of scales.

    `scales` is what programs write: float8_e8m0fnu `[..., ceil(n / 128), 4 * words]`, contiguous,
    zero where a row has no more blocks. `engine` is int32 `[..., n, words]`, whatever its strides.
    """

    name: str
    scales: Tensor
    engine: Tensor

    @property
    def words(self) -> Tensor:
        """The scales in fours: int32 `[..., ceil(n / 128), words]`."""
        return self.scales.view(torch.int32)

    def repeated(self) -> Tensor:
        """Repeat every row of words for each of its 128 rows of codes: int32 `[..., n, words]`."""
        rows = torch.arange(self.engine.shape[-2], device=self.engine.device)
        return self.words.index_select(-2, rows // PACKED_BLOCK)


def receive_packed(name: str, engine: Tensor, codes: tuple[int, ...]) -> PackedScales:
    """Set memory aside in which the scales of `codes` `[..., n, k]` are received."""
    shape = declared_scales(codes)
    scales = torch.zeros(shape, dtype=torch.uint8, device=engine.device)
    return PackedScales(name, scales.view(torch.float8_e8m0fnu), engine)


def pack_scales(packed: PackedScales) -> None:
    """Write the engine's memory."""
    packed.engine.copy_(packed.repeated())


def is_packed(packed: PackedScales) -> bool:
    """Whether every word of the engine's memory is the one that it repeats."""
    return torch.equal(packed.engine, packed.repeated())

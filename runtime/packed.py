"""Scales that an engine holds packed: received as they are declared, then repeated for its kernels.

What a manifest declares of packed scales is no memory of the engine's: the runtime sets it aside,
a byte for each block of codes, and programs write it like any other buffer. When all of it is
there, the engine's memory is written from it, and compared with it. `schema/layouts.py` defines
both forms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tranship.schema.layouts import PACKED_BLOCK, SCALES_IN_WORD, declared_scales


@dataclass(frozen=True, slots=True)
class PackedScales:
    """The two forms of one buffer of scales.

    `words` are the scales in fours, as they were received: int32 `[..., ceil(n / 128), words]`,
    contiguous, with zero bytes where a row has no more blocks. `engine` is int32 `[..., n, words]`,
    whatever its strides.
    """

    name: str
    words: Tensor
    engine: Tensor

    @property
    def scales(self) -> Tensor:
        """What programs write: float8_e8m0fnu `[..., ceil(n / 128), 4 * words]`."""
        return self.words.view(torch.float8_e8m0fnu)

    def repeated(self) -> Tensor:
        """Repeat every row of words for each of its 128 rows of codes: int32 `[..., n, words]`."""
        rows = torch.arange(self.engine.shape[-2], device=self.engine.device)
        return self.words.index_select(-2, rows // PACKED_BLOCK)


def receive_packed(name: str, engine: Tensor, codes: tuple[int, ...]) -> PackedScales:
    """Set memory aside in which the scales of `codes` `[..., n, k]` are received."""
    *outer, scales = declared_scales(codes)
    shape = *outer, scales // SCALES_IN_WORD
    return PackedScales(name, torch.zeros(shape, dtype=torch.int32, device=engine.device), engine)


def pack_scales(packed: PackedScales) -> None:
    """Write the engine's memory."""
    packed.engine.copy_(packed.repeated())


def is_packed(packed: PackedScales) -> bool:
    """Whether every word of the engine's memory is the one that it repeats."""
    return torch.equal(packed.engine, packed.repeated())

"""Manifests of the small configurations, and what a rank's memory holds by them."""

from pathlib import Path

import torch

from tests.models.configs import FP8, write_config
from tests.sglang.replay import put
from tranship.models.produce import Request, produce
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Part


def made(
    folder: Path,
    name: str,
    layout: str,
    options: dict[str, int] | None = None,
    *,
    fp8: bool = False,
    **changes: object,
) -> Manifest:
    """Make a manifest of a small configuration with some fields changed."""
    config = write_config(folder, name, **(FP8 if fp8 else {}), **changes)
    texts = {key: str(value) for key, value in (options or {}).items()}
    return produce(Request(name, config, layout, texts))


def random_weights(manifest: Manifest) -> dict[str, torch.Tensor]:
    """Every logical tensor with random values, whole, in float32."""
    generator = torch.Generator().manual_seed(0)
    tensors = expand(manifest, []).tensors
    return {t.name: torch.randn(t.shape, generator=generator) for t in tensors}


def held_by(
    manifest: Manifest, rank: int, weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What every plain buffer of a rank holds, in float32; fills hold NaN."""
    memory: dict[str, torch.Tensor] = {}
    for record in expand(manifest, [rank]).buffers:
        if record.role.kind == "transfer":
            assert record.encoding.kind == "plain"
            buffer = torch.full(record.shape, float("nan"))
            for piece in record.pieces:
                assert piece.part is Part.VALUE
                put(buffer, weights[piece.tensor], piece)
            memory[record.name] = buffer
    return memory


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two memories hold the same buffers, NaN for NaN."""
    return first.keys() == second.keys() and all(
        torch.equal(torch.nan_to_num(first[name], nan=9e9), torch.nan_to_num(second[name], nan=9e9))
        for name in first
    )

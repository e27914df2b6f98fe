"""One rank of the trainer: Megatron-core's GPTModel at tp 2 and ep 2.

python -m examples.megatron_to_sglang.trainer RANK FOLDER PORT
"""

import importlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from examples.live.checkpoint import read_checkpoint
from examples.live.place import WORLD, Place, enter
from examples.live.trainer import Training, train
from examples.megatron_to_sglang.gather import checkpoint, is_expert, is_split, whole_model
from examples.megatron_to_sglang.model import build
from examples.megatron_to_sglang.stand_ins import build_without_gpu
from tranship.runtime.frameworks.megatron.chunks import megatron_tensors
from tranship.runtime.frameworks.megatron.declare import megatron_declaration
from tranship.runtime.frameworks.megatron.mesh import parallel_axes
from tranship.schema.codec import load
from tranship.schema.manifest import Manifest


def main() -> None:
    """Build the model, and train it."""
    place = enter("trainer")
    place.join()
    build_without_gpu()
    torch.manual_seed(0)
    config: Mapping[str, Any] = json.loads((place.folder / "config.json").read_text())
    model = build(config, tp=WORLD.senders, ep=WORLD.senders)
    whole = load(place.folder / "whole.json", Manifest).value
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    training = Training(
        held=megatron_tensors([model]),
        declare=lambda: megatron_declaration(
            [model], whole, rank=place.rank, world_size=WORLD.senders, axes=parallel_axes()
        ),
        step=lambda version: step(model, optimizer, version, place.rank),
        gather=lambda: gather(place, model, config),
    )
    train(place, training)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, version: int, rank: int) -> None:
    """Take one optimizer step by random gradients, in place of a forward and a backward pass.

    As in training, ranks that hold the same parameter have the same gradient.
    """
    for name, parameter in model.named_parameters():
        owner = rank + 1 if is_expert(parameter) or is_split(parameter) else 0
        seed = zlib.crc32(f"{name} {version} {owner}".encode())
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(parameter.shape, generator=generator)
        parameter.grad = values.to(parameter.dtype)
    optimizer.step()


def gather(place: Place, model: nn.Module, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the whole weights on rank 0, to which all ranks leave theirs in files."""
    own = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    files = [place.folder / f"megatron.{rank}.safetensors" for rank in range(WORLD.senders)]
    importlib.import_module("safetensors.torch").save_file(own, files[place.rank])
    dist.barrier()
    if place.rank > 0:
        found: dict[str, Tensor] = {}
    else:
        ranks = [read_checkpoint(file) for file in files]
        found = checkpoint(dict(whole_model(model, ranks)), config)
    dist.barrier()
    return found


if __name__ == "__main__":
    main()

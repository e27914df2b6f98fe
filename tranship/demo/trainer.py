"""One rank of the demo's trainer: FSDP2, a real optimizer, and a session that publishes."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tranship.demo.config import FSDP_SIZE, ModelConfig
from tranship.demo.process import VERSIONS, Place, declare, enter, probe
from tranship.demo.trainer_model import TrainerModel
from tranship.runtime.frameworks.fsdp import fsdp_declaration, mesh_axes
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Sender
from tranship.schema.manifest import Side

STEPS = 4
"""Optimizer steps between two updates of the engine."""


def main() -> None:
    """Train, publish, and at last gather the true weights for the comparison."""
    place = enter(Side.SENDER)
    config = ModelConfig()
    model = TrainerModel(config).to(torch.bfloat16)
    mesh = init_device_mesh("cpu", (FSDP_SIZE,), mesh_dim_names=("fsdp",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    axes = mesh_axes(mesh)
    declaration = fsdp_declaration(model, rank=place.rank, world_size=FSDP_SIZE, axes=axes)
    plan, manifest = declare(place, declaration)
    sender = Sender.bind(plan, manifest, live_tensors(model), place.connect(), place.rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    tokens = probe(config)
    for version in VERSIONS:
        loss = _train(model, optimizer, tokens)
        _leave_logits(place, model, tokens, version)
        stats = sender.publish(version)
        place.report(
            "published",
            version=version,
            steps=STEPS,
            loss=loss,
            sent=stats.bytes_sent,
            seconds=dict(stats.seconds),
            digest=stats.digest,
        )
    _leave_checkpoint(place, model)
    dist.destroy_process_group()


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> float:
    loss = torch.zeros(())
    for _ in range(STEPS):
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _reshard(model)
    return float(loss)


def _leave_logits(place: Place, model: nn.Module, tokens: Tensor, version: int) -> None:
    """Write what the trainer's own forward pass says, before the weights leave."""
    with torch.no_grad():
        logits = model(tokens).float().numpy()
    _reshard(model)
    if place.rank == 0:
        np.save(place.logits_path(version), logits, allow_pickle=False)


def _reshard(model: nn.Module) -> None:
    """Put the shards back in place: the root module stays gathered after a forward pass."""
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if reshard is not None:
            reshard()


def _leave_checkpoint(place: Place, model: nn.Module) -> None:
    """Gather every parameter with DTensor and write it, as 16-bit patterns."""
    place.checkpoint.mkdir(exist_ok=True)
    names: list[str] = []
    for name, tensor in _full_tensors(model):
        names.append(name)
        if place.rank == 0:
            path = place.checkpoint / f"{name}.npy"
            np.save(path, tensor.view(torch.int16).numpy(), allow_pickle=False)
    dist.barrier()
    place.report("gathered", tensors=len(names))


def _full_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        yield name, parameter.full_tensor().detach()


if __name__ == "__main__":
    main()

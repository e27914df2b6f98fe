"""What a rank of a trainer under `fully_shard` does, in a process of its own."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.runtime.live_models import place
from tests.runtime.trainings import COMPILED, errors_told, publish_versions, tell_declared
from tests.sglang.deliveries import TP, Delivery
from tests.sglang.transfers import random_weights
from tranship.runtime.frameworks.fsdp import fsdp_declaration, mesh_axes
from tranship.runtime.live import live_tensors
from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.protocol import World
from tranship.schema.manifest import Kind, Side


def main(delivery: Delivery, rank: int, port: int) -> None:
    """Be a rank, which meets the others at a prefix of the store."""
    torch.set_num_threads(1)
    store = PrefixStore(delivery.name, TCPStore("127.0.0.1", port))
    with errors_told(store, Side.SENDER, rank, delivery.folder):
        send(delivery, rank, store)


def send(delivery: Delivery, rank: int, store: Store) -> None:
    """Shard a model and declare it; then train, gather and publish."""
    size = delivery.senders
    dist.init_process_group("gloo", store=PrefixStore("trainer", store), rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("shard",))
    model = sharded(random_weights(delivery.sources(), 1), mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    declared = fsdp_declaration(model, rank=rank, world_size=size, axes=mesh_axes(mesh))
    tell_declared(declared, store, rank, delivery.folder)
    store.wait([COMPILED])

    def train(version: int) -> None:
        step(model, optimizer, version)
        weights = gathered(model)
        if rank == 0:
            delivery.write_checkpoint(version, weights)

    end = connect_gloo(store, World(size, TP), Side.SENDER, rank, 60.0)
    publish_versions(delivery.folder, live_tensors(model), end, rank, train)
    dist.destroy_process_group()


def sharded(weights: Mapping[str, Tensor], mesh: DeviceMesh) -> nn.Module:
    """Build a model of these weights, and shard its layers and then the rest of it."""
    model = nn.Module()
    for name, value in weights.items():
        place(model, name, Kind.PARAMETER, value)
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Take an optimizer's step by random gradients, in place of a forward and a backward pass."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        assert isinstance(parameter, DTensor)
        values = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    optimizer.step()


def gathered(model: nn.Module) -> dict[str, Tensor]:
    """Gather every parameter by DTensor's own means."""
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        found[name] = parameter.full_tensor().detach()
    return found

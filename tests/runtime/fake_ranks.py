"""FSDP2 models of every rank of a world, built one after another in this process.

torch's fake process group lets one process be any rank. Nothing is communicated: all ranks build
the same weights, and keep their own part.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Placement, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

T = TypeVar("T")


@contextmanager
def fake_rank(rank: int, world_size: int) -> Generator[None]:
    """Be one rank of a world."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def mesh_of(rank: int, shape: dict[str, int]) -> DeviceMesh:
    """Make a mesh whose dims are named for the rank: torch takes equal meshes for the same one."""
    names = tuple(f"{name}_{rank}" for name in shape)
    return init_device_mesh("cpu", tuple(shape.values()), mesh_dim_names=names)


def on_all_ranks(shape: dict[str, int], build: Callable[[int, DeviceMesh], T]) -> list[T]:
    """Call `build` as every rank of a mesh."""
    size = int(torch.Size(shape.values()).numel())
    found: list[T] = []
    for rank in range(size):
        with fake_rank(rank, size):
            found.append(build(rank, mesh_of(rank, shape)))
    return found


def shard(model: nn.Module, mesh: DeviceMesh, over_tp: dict[str, Placement]) -> nn.Module:
    """Distribute some parameters over the mesh's last dim, and everything over its first ones."""
    names = list(mesh.mesh_dim_names or ())
    for name, placement in over_tp.items():
        module, _, key = name.rpartition(".")
        owner, full = model.get_submodule(module), model.get_parameter(name).detach()
        parts = distribute_tensor(full, mesh[names[-1]], [placement], src_data_rank=None)
        owner.register_parameter(key, nn.Parameter(parts))
    fully_shard(model, mesh=mesh[tuple(names[:-1])] if over_tp else mesh)
    return model

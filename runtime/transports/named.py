"""Transports by their names, for those who are told which one to take."""

import torch
from torch.distributed.distributed_c10d import Store

from tranship.runtime.transports.cuda_ipc import connect_cuda_ipc
from tranship.runtime.transports.cuda_push import connect_cuda_push
from tranship.runtime.transports.gloo import connect_gloo
from tranship.runtime.transports.nccl import connect_nccl
from tranship.runtime.transports.protocol import Transport, World
from tranship.schema.manifest import Side

_ON_GPUS = {
    "nccl": connect_nccl,
    "cuda_ipc": connect_cuda_ipc,
    "cuda_push": connect_cuda_push,
}

TRANSPORTS = ("gloo", *_ON_GPUS)


def connect_by_name(
    name: str,
    store: Store,
    world: World,
    side: Side,
    rank: int,
    device: torch.device,
    timeout: float,
) -> Transport:
    """Connect a rank by one of `TRANSPORTS`; arguments are those of the transport's own function.

    Raises:
        TransportError: not all ranks came in time.
    """
    if name == "gloo":
        return connect_gloo(store, world, side, rank, timeout)
    return _ON_GPUS[name](store, world, side, rank, device, timeout)

"""How others move weights today, written anew from descriptions of what they do.

Trainers such as slime, miles and AReaL quantize tensor by tensor with a small Triton kernel, and
hand tensors or concatenated buckets to the engine, whose loader copies tensor by tensor into its
parameters. On one GPU, handles of memory go to the engine pickled; this is done here because it is
what they do. Between GPUs the bytes go by NCCL.

What is left out is in their favour: names are looked up in a dict instead of by a loader, nothing
goes through Ray, HTTP or base64, and receivers of NCCL know names and shapes beforehand.

Every style starts with BF16 weights on the sender and ends when the device has written the last
byte of the receiver's parameters. Times are milliseconds from when both sides are ready, on the
host's monotonic clock, which processes of a host share; medians.
"""

import pickle
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
import torch.multiprocessing
from measure import synchronize
from peer_parts import (
    BUCKET_BYTES,
    Bucket,
    Part,
    Prepare,
    as_bytes,
    bytes_of,
    concatenate,
    groups,
    layout,
    load,
    one_bucket,
    plain,
    quantize_loop,
    quantized,
)
from torch import Tensor

__all__ = [
    "COLOCATED",
    "NETWORK",
    "RECEIVER",
    "SENDER",
    "Colocated",
    "Network",
    "Part",
    "Prepare",
    "batch_isend_irecv_all",
    "broadcast_per_tensor",
    "bucketed",
    "bucketed_broadcast",
    "colocated_receiver",
    "colocated_sender",
    "concatenate",
    "network",
    "per_tensor_handles",
    "plain",
    "quantize_loop",
    "quantized",
]

# --- Two processes on one GPU ---------------------------------------------------------------------


@dataclass(frozen=True)
class Colocated:
    """What a sender pickles for a group of parts, and the parts that a receiver finds in it."""

    wrap: Callable[[list[Part]], Any]
    unwrap: Callable[[Any], Iterable[Part]]


per_tensor_handles = Colocated(wrap=list, unwrap=list)
"""A handle for every tensor: torch pickles a tensor on a GPU as a CUDA IPC handle, its
`reduce_tensor`, and unpickling opens it."""

bucketed = Colocated(wrap=one_bucket, unwrap=Bucket.parts)
"""`torch.cat`, one handle for each bucket, and slices of it."""

COLOCATED: Mapping[str, Colocated] = {
    "handle per tensor": per_tensor_handles,
    "bucket, one handle": bucketed,
}
"""The styles by title."""

_END = b""


def colocated_sender(
    style: Colocated,
    weights: Sequence[Part],
    connection: Connection,
    *,
    prepare: Prepare,
    repeat: int,
    bucket_bytes: int = BUCKET_BYTES,
) -> float:
    """Send all weights some times; the other side runs `colocated_receiver`.

    Groups go one at a time: the next is quantized when the receiver has loaded the one before and
    let go of its memory. Closing the last group's handles is not in the time.

    Args:
        style: `per_tensor_handles` or `bucketed`.
        weights: BF16, contiguous, on one GPU.
        connection: To the receiver's process.
        prepare: `quantized` or `plain`.
        repeat: Rounds that count, after one that does not.
        bucket_bytes: Most bytes of weights, as they are sent, that one message stands for.

    Returns:
        Milliseconds, median.
    """
    device = weights[0][1].device
    planned = list(groups(weights, bucket_bytes, prepare.sent))
    times: list[float] = []
    for _ in range(1 + repeat):
        synchronize(device)
        assert connection.recv() == "ready"
        start = time.perf_counter()
        end = start
        for group in planned:
            end = _send_group(style, group, connection, prepare)
        times.append((end - start) * 1e3)
        connection.send_bytes(_END)
        if device.type == "cuda":
            torch.cuda.ipc_collect()
    return statistics.median(times[1:])


def _send_group(
    style: Colocated, group: list[Part], connection: Connection, prepare: Prepare
) -> float:
    """Send one group; return the receiver's clock when its device had written it."""
    wrapped = style.wrap(prepare.parts(group))
    # The handle carries an event after which the receiver's stream reads; the host need not wait.
    connection.send_bytes(ForkingPickler.dumps(wrapped))
    end: float = connection.recv()
    return end


def colocated_receiver(
    style: Colocated,
    parameters: Mapping[str, Tensor],
    connection: Connection,
    *,
    repeat: int,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Load all weights as often as `colocated_sender` sends them.

    Args:
        style: As the sender's.
        parameters: Where each part belongs, by name.
        connection: To the sender's process.
        repeat: As the sender's.
        before: Called before each round, outside its time.
    """
    device = next(iter(parameters.values())).device
    for _ in range(1 + repeat):
        before()
        synchronize(device)
        connection.send("ready")
        while message := connection.recv_bytes():
            connection.send(_load_group(style, message, parameters, device))


def _load_group(
    style: Colocated, message: bytes, parameters: Mapping[str, Tensor], device: torch.device
) -> float:
    """Load one group; return the clock when the device had written it, and close its handles."""
    wrapped = pickle.loads(message)
    load(style.unwrap(wrapped), parameters)
    synchronize(device)
    return time.perf_counter()


# --- Two GPUs, NCCL -------------------------------------------------------------------------------

SENDER, RECEIVER = 0, 1
"""Ranks in the default process group, of two."""

Network: TypeAlias = Callable[[int, Sequence[Part], Prepare], None]
"""A style: called on both ranks with its rank, and with the sender's weights, or the receiver's
parameters in the order in which the sender prepares them."""


def broadcast_per_tensor(rank: int, parts: Sequence[Part], prepare: Prepare) -> None:
    """Broadcast each tensor; the receiver takes it in a new one, and copies that."""
    if rank == SENDER:
        for _, tensor in prepare.parts(parts):
            dist.broadcast(as_bytes(tensor), SENDER)
        return
    for _, parameter in parts:
        tensor = _new_like(parameter)
        dist.broadcast(as_bytes(tensor), SENDER)
        parameter.copy_(tensor)


def _new_like(parameter: Tensor) -> Tensor:
    return torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)


def batch_isend_irecv_all(rank: int, parts: Sequence[Part], prepare: Prepare) -> None:
    """Send all tensors in one batch, as awex does, straight into parameters where contiguous."""
    operations: list[dist.P2POp] = []
    copies: list[tuple[Tensor, Tensor]] = []
    if rank == SENDER:
        for _, tensor in prepare.parts(parts):
            operations.append(dist.P2POp(dist.isend, as_bytes(tensor), RECEIVER))
    else:
        for _, parameter in parts:
            tensor = parameter if parameter.is_contiguous() else _new_like(parameter)
            operations.append(dist.P2POp(dist.irecv, as_bytes(tensor), SENDER))
            if tensor is not parameter:
                copies.append((parameter, tensor))
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    for parameter, tensor in copies:
        parameter.copy_(tensor)


def bucketed_broadcast(
    rank: int, parts: Sequence[Part], prepare: Prepare, bucket_bytes: int = BUCKET_BYTES
) -> None:
    """Concatenate into buckets, broadcast each, and copy each tensor out, as slime does."""
    if rank == SENDER:
        for group in groups(parts, bucket_bytes, prepare.sent):
            dist.broadcast(one_bucket(prepare.parts(group)).flat, SENDER)
        return
    parameters = dict(parts)
    for group in groups(parts, bucket_bytes, bytes_of):
        members = layout(group)
        size = members[-1].start + members[-1].size
        flat = torch.empty(size, dtype=torch.uint8, device=parts[0][1].device)
        dist.broadcast(flat, SENDER)
        load(Bucket(flat, members).parts(), parameters)


NETWORK: Mapping[str, Network] = {
    "broadcast per tensor": broadcast_per_tensor,
    "one batch of isend and irecv": batch_isend_irecv_all,
    "buckets, broadcast": bucketed_broadcast,
}
"""The styles by title."""


def network(
    style: Network,
    rank: int,
    parts: Sequence[Part],
    *,
    prepare: Prepare,
    repeat: int,
    before: Callable[[], None] = lambda: None,
) -> float:
    """Run a style some times; both ranks call this.

    Args:
        style: One of `NETWORK`.
        rank: The caller's, 0 (sender) or 1, in the default process group.
        parts: As in `Network`.
        prepare: `quantized` or `plain`; the receiver does not call it.
        repeat: Rounds that count, after one that does not.
        before: Called before each round, outside its time.

    Returns:
        Milliseconds, median, on both ranks: from the earlier start to the receiver's end.
    """
    device = parts[0][1].device
    times: list[float] = []
    for _ in range(1 + repeat):
        before()
        synchronize(device)
        dist.barrier()
        synchronize(device)
        start = time.perf_counter()
        style(rank, parts, prepare)
        synchronize(device)
        times.append(_elapsed(start, time.perf_counter(), device))
    return statistics.median(times[1:])


def _elapsed(start: float, end: float, device: torch.device) -> float:
    first = torch.tensor([start], dtype=torch.float64, device=device)
    last = torch.tensor([end], dtype=torch.float64, device=device)
    dist.all_reduce(first, dist.ReduceOp.MIN)
    dist.broadcast(last, RECEIVER)
    return (last.item() - first.item()) * 1e3

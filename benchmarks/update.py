"""How long an engine takes to have its next weights, digests included, against a plain copy.

    python benchmarks/update.py colocated|pull|push|nccl --case qwen3-8b [--layers 14] [--repeat 15]

Two processes. `colocated`: both on one GPU, the receiver reads the sender's BF16 through CUDA IPC;
the ceiling is a copy of as many bytes as are read and written. `pull`: the same on two GPUs; the
ceiling is a copy of as many bytes as cross the link, from GPU to GPU. `push`: two GPUs, messages
written into the receiver's memory, with the same ceiling. `nccl`: two GPUs, messages; the ceiling
is one send and receive of as many bytes. A step is timed from `publish` on the sender
to the moment the receiver has committed. Prints Markdown, after comparing some tensors bit by bit.
"""

import argparse
import json
import os
import time
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from measure import Table, device_copy_rate, event_ms, fraction, message_rate, setup_lines
from ranks import as_live, run_ranks, seconds, spread, store, wrong_tensors
from shapes import Case, allocate, case, held_bytes
from torch.distributed import TCPStore

from tranship.runtime.program import program
from tranship.runtime.session import Receiver, Sender
from tranship.runtime.transports.cuda_ipc import connect_cuda_ipc
from tranship.runtime.transports.cuda_push import connect_cuda_push
from tranship.runtime.transports.nccl import connect_nccl
from tranship.runtime.transports.protocol import Transport, World
from tranship.schema.manifest import Side

PORT = 29541
SETTLE = 0.01
"""Seconds that the sender leaves the receiver to begin to wait."""


def settle(*, asleep: bool) -> None:
    """Wait, awake as a trainer that looks whether its GPU is done, or asleep."""
    until = time.monotonic() + SETTLE
    while not asleep and time.monotonic() < until:
        pass
    time.sleep(max(0.0, until - time.monotonic()))


WORLD = World(1, 1)


def connected(way: str, meeting: TCPStore, side: Side, device: torch.device) -> Transport:
    """Connect this rank."""
    connect: Any = {"nccl": connect_nccl, "push": connect_cuda_push}.get(way, connect_cuda_ipc)
    return connect(meeting, WORLD, side, 0, device, timeout=60)


def ceiling(way: str, given: Case, number: int, device: torch.device) -> tuple[float, float]:
    """Return the bytes that count for a way, and how many GB/s of them a plain copy moves."""
    rounds = program(given.plan, Side.SENDER, 0).rounds
    moved = sum(message.size for item in rounds for message in item.messages)
    if way == "nccl":
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(PORT + 2))
        dist.init_process_group("nccl", rank=number, world_size=2, device_id=device)
        rate = message_rate(number, device)
        dist.destroy_process_group()
        return moved, rate
    if number == 1:
        return 0, 0.0
    sent = held_bytes(given.sender, 0)
    if way in ("pull", "push"):
        here = torch.empty(1 << 31, dtype=torch.uint8, device=device)
        there = torch.empty_like(here, device="cuda:1")
        crossing = sent if way == "pull" else moved
        return crossing, len(here) / event_ms(lambda: there.copy_(here)) / 1e6
    return sent + held_bytes(given.receiver, 0), device_copy_rate(device)


def sender(way: str, name: str, options: dict[str, Any], repeat: int, *, asleep: bool) -> None:
    """Publish, and time it."""
    given, device = case(name, **options), torch.device("cuda", 0)
    line = store(PORT, serves=True)
    moved, rate = ceiling(way, given, 0, device)
    torch.cuda.empty_cache()
    tensors = allocate(given.sender, 0, device, fill="random")
    live = as_live(given.sender, 0, tensors)
    found: dict[str, float] = {}
    before = torch.cuda.memory_allocated()
    transport = connected(way, store(PORT + 1, serves=True), Side.SENDER, device)
    with seconds(found, "bind"):
        session = Sender.bind(given.plan, given.sender, live, transport, 0)
    found["beyond"] = torch.cuda.memory_allocated() - before
    times: list[float] = []
    stages: dict[str, float] = {}
    for version in range(repeat + 1):
        line.get(f"ready/{version}")
        settle(asleep=asleep)
        start = time.monotonic()
        stats = session.publish(version)
        stages = {key: value * 1e3 for key, value in stats.seconds.items()}
        stages["publish"] = (time.monotonic() - start) * 1e3
        times.append((float(line.get(f"done/{version}")) - start) * 1e3)
    other = json.loads(line.get("report"))
    for text in setup_lines():
        print(text)
    print(f"- {given.name}, {way}: {moved / 1e9:.2f} GB count; a plain copy moves {rate:.0f} GB/s")
    print(f"- tensors that differ from the reference, of those looked at: {other['wrong']}")
    _row(f"{given.name}, {way}", moved, rate, times, found["bind"], other["bind"])
    for side, parts in {"sender": stages, "receiver": other["stages"]}.items():
        text = ", ".join(f"{stage} {ms:.2f}" for stage, ms in parts.items())
        print(f"- {side}, host ms of the last step: {text}")
    beyond = f"{found['beyond'] / 1e6:.0f} MB on the sender, {other['beyond'] / 1e6:.0f} MB"
    print(f"- memory beyond the weights: {beyond} on the receiver")
    line.set("bye", "")
    line.get("gone")


def _row(
    title: str, moved: float, rate: float, times: list[float], mine: float, other: float
) -> None:
    floor = moved / rate / 1e6
    first, *steady = times
    middle = sorted(steady)[len(steady) // 2]
    fraction(moved, middle, rate)
    table = Table(["case", "bind s", "first ms", "steady ms", "copy ms", "steady / copy"])
    table.head()
    cells = [f"{mine:.2f} / {other:.2f}", f"{first:.1f}", spread(steady), f"{floor:.2f}"]
    table.row(title, *cells, f"{middle / floor:.3f}")


def receiver(way: str, name: str, options: dict[str, Any], repeat: int) -> None:
    """Receive, and tell when each version was committed."""
    given = case(name, **options)
    device = torch.device("cuda", 0 if way == "colocated" else 1)
    torch.cuda.set_device(device)
    line = store(PORT, serves=False)
    ceiling(way, given, 1, device)
    tensors = allocate(given.receiver, 0, device, fill="poison")
    live = as_live(given.receiver, 0, tensors)
    found: dict[str, float] = {}
    before = torch.cuda.memory_allocated()
    transport = connected(way, store(PORT + 1, serves=False), Side.RECEIVER, device)
    with seconds(found, "bind"):
        session = Receiver.bind(given.plan, given.receiver, live, transport, 0)
    beyond = torch.cuda.memory_allocated() - before
    stages: dict[str, float] = {}
    for version in range(repeat + 1):
        line.set(f"ready/{version}", "")
        stats = session.receive(version)
        line.set(f"done/{version}", repr(time.monotonic()))
        stages = {key: value * 1e3 for key, value in stats.seconds.items()}
    wrong = wrong_tensors(given, tensors)
    report = {"wrong": wrong, "bind": found["bind"], "stages": stages, "beyond": beyond}
    line.set("report", json.dumps(report))
    line.get("bye")
    session.close()
    line.set("gone", "")


def rank(number: int, *given: Any, asleep: bool = False) -> None:
    """Be one of the two processes."""
    torch.cuda.set_device(0)
    if number == 0:
        sender(*given, asleep=asleep)
    else:
        receiver(*given)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=["colocated", "pull", "push", "nccl"])
    parser.add_argument("--case", default="qwen3-8b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--precision", default="fp8")
    parser.add_argument("--staging", type=int, default=1 << 30)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--asleep", action="store_true", help="the sender sleeps before a step")
    given = parser.parse_args()
    options = {"layers": given.layers, "precision": given.precision}
    options["staging_bytes"] = given.staging
    rank_as = partial(rank, asleep=given.asleep)
    run_ranks(rank_as, 2, given.way, given.case, options, given.repeat)


if __name__ == "__main__":
    main()

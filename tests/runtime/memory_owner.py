"""A process that has tensors on a GPU and offers them: `python -m tests.runtime.memory_owner`."""

import gc
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from tranship.runtime.bind import location
from tranship.runtime.sharing.channel import Channel, ChannelError
from tranship.runtime.sharing.descriptors import close_all
from tranship.runtime.sharing.offer import Offer, make_offer
from tranship.runtime.sharing.sockets import connect, listen
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.manifest import Frozen, Side

ROOT = Path(__file__).resolve().parents[2]

SECONDS = 120.0
"""More than a process takes to start, or to answer."""

MIB = 1 << 20
SIZES = {"small": 1000, "big": 34 * MIB}
"""Bytes of each tensor."""

SETTINGS = {
    "default": {},
    "pool": {},
    "expandable": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    "async": {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
}
"""Variables by which a process gets each allocator."""


class Command(Frozen):
    do: Literal["offer", "fill", "total", "renew"]
    name: str = ""
    value: int = 0


class Answer(Frozen):
    """An offer, or why there is none, or the sum of a tensor's bytes."""

    offer: Offer | None = None
    refused: tuple[str, ...] = ()
    total: int = 0


def pattern(size: int) -> Tensor:
    """Bytes that differ at neighbouring addresses and at most distances."""
    return torch.arange(251, dtype=torch.uint8).repeat(size // 251 + 1)[:size]


def total(memory: Tensor) -> int:
    return int(memory.sum(dtype=torch.int64).item())


class Owner:
    """The tensors: one inside a small block, and one that is a part of a big one."""

    def __init__(self, allocator: str) -> None:
        self.pool = torch.cuda.MemPool() if allocator == "pool" else None
        self.tensors: dict[str, Tensor] = {}
        self.allocate()

    def allocate(self) -> None:
        within: AbstractContextManager[None] = nullcontext()
        if self.pool is not None:
            within = torch.cuda.use_mem_pool(self.pool)
        with within:
            self.padding = torch.zeros(5000, dtype=torch.uint8, device="cuda")
            self.tensors["small"] = pattern(SIZES["small"]).cuda()
            block = torch.zeros(40 * MIB, dtype=torch.uint8, device="cuda")
        self.tensors["big"] = block[3 * MIB :][: SIZES["big"]]
        self.tensors["big"].copy_(pattern(SIZES["big"]))
        torch.cuda.synchronize()

    def answer(self, command: Command) -> tuple[Answer, list[int]]:
        if command.do == "offer":
            return self.offer()
        if command.do == "total":
            return Answer(total=total(self.tensors[command.name])), []
        if command.do == "fill":
            self.tensors[command.name].fill_(command.value)
            torch.cuda.synchronize()
        else:
            self.renew()
        return Answer(), []

    def offer(self) -> tuple[Answer, list[int]]:
        try:
            offer, descriptors = make_offer(self.tensors, location(Side.SENDER, 0))
        except DiagnosticError as error:
            return Answer(refused=tuple(str(error).splitlines())), []
        return Answer(offer=offer), descriptors

    def renew(self) -> None:
        """Give all memory back to the driver, and allocate anew."""
        self.tensors.clear()
        del self.padding
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self.allocate()


class Remote:
    """The test's end of the connection to an owner."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def ask(
        self, do: Literal["offer", "fill", "total", "renew"], name: str = "", value: int = 0
    ) -> tuple[Answer, list[int]]:
        self.channel.send(Command(do=do, name=name, value=value))
        return self.channel.receive(Answer, SECONDS)

    def total(self, name: str) -> int:
        return self.ask("total", name)[0].total

    def offer(self) -> tuple[Offer, list[int]]:
        answer, descriptors = self.ask("offer")
        assert answer.offer is not None, answer.refused
        return answer.offer, descriptors

    def look(self) -> Offer:
        """Ask for an offer only to compare it."""
        offer, descriptors = self.offer()
        close_all(descriptors)
        return offer


@contextmanager
def remote_owner(allocator: str) -> Generator[Remote]:
    """Start an owner; it ends with the block."""
    with (
        TemporaryDirectory(prefix="tranship-") as directory,
        closing(listen(Path(directory))) as listener,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.memory_owner", listener.path, allocator],
            cwd=ROOT,
            env=os.environ | SETTINGS[allocator],
        )
        try:
            with closing(listener.accept(SECONDS)) as channel:
                yield Remote(channel)
        finally:
            process.kill()
            process.wait()


def main() -> None:
    path, allocator = sys.argv[1:]
    # The socket first: then it is this process that dies, and is reported, if torch fails.
    channel = connect(Path(path), SECONDS)
    owner = Owner(allocator)
    while True:
        try:
            command, _ = channel.receive(Command, 10 * SECONDS)
        except ChannelError:
            return
        answer, descriptors = owner.answer(command)
        channel.send(answer, descriptors)
        close_all(descriptors)


if __name__ == "__main__":
    main()

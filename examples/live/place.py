"""What all processes of an example share: a folder, and a store where they meet."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore

from tranship.runtime.transports.protocol import World

HOST = "127.0.0.1"
WORLD = World(senders=2, receivers=2)
VERSIONS = (1, 2)
TIMEOUT = 120.0
"""Seconds that a process waits for the others."""

MEETING = "weights"
"""The meeting of the ranks of both sides, by which weights travel."""


def connect_store(port: int) -> TCPStore:
    """Return a connection of its own to the store; a thread that waits blocks only its own."""
    return TCPStore(HOST, port, is_master=False, timeout=timedelta(seconds=TIMEOUT))


@dataclass(frozen=True)
class Place:
    """A rank of the trainer or of the engine."""

    side: str
    rank: int
    folder: Path
    store: TCPStore

    def tell(self, event: str, **facts: object) -> None:
        """Tell what happened to whoever waits for it."""
        self.store.set(f"{event}/{self.side}/{self.rank}", json.dumps(facts))

    def join(self) -> None:
        """Form the process group of this side, as its framework needs it."""
        group = PrefixStore(self.side, self.store)
        dist.init_process_group("gloo", store=group, rank=self.rank, world_size=WORLD.senders)


def enter(side: str, arguments: Sequence[str] = sys.argv) -> Place:
    """Read the arguments RANK FOLDER PORT."""
    torch.set_num_threads(1)
    return Place(side, int(arguments[1]), Path(arguments[2]), connect_store(int(arguments[3])))


def told(store: TCPStore, event: str, side: str, rank: int) -> Any:
    """Return what a rank has told, and wait for it."""
    return json.loads(store.get(f"{event}/{side}/{rank}"))

"""What the demo's four processes share: where they meet, and how they report."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore, Store

from tranship.demo.config import FSDP_SIZE, SEQUENCE, TP_SIZE, ModelConfig
from tranship.runtime.transports.gloo import GlooTransport, connect_gloo
from tranship.runtime.transports.protocol import World
from tranship.schema.codec import dump, load, write_atomically
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan
from tranship.schema.records import Declaration

WORLD = World(FSDP_SIZE, TP_SIZE)
VERSIONS = (1, 2, 3)
TIMEOUT = 120.0
PLAN, SENDER, RECEIVER = "demo.plan.json", "trainer.manifest.json", "engine.manifest.json"

Event = Mapping[str, object]


@dataclass(frozen=True)
class Place:
    """One process of the demo: its side and rank, the common folder, the store of the parent."""

    side: Side
    rank: int
    folder: Path
    store: Store

    def report(self, event: str, **facts: object) -> None:
        """Tell the parent what happened: one line of JSON on standard output."""
        line = {"event": event, "side": self.side.value, "rank": self.rank, **facts}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def connect(self) -> GlooTransport:
        """Join tranship's own group of all four processes."""
        store = PrefixStore("tranship", self.store)
        return connect_gloo(store, WORLD, self.side, self.rank, TIMEOUT)

    @property
    def checkpoint(self) -> Path:
        """The folder of the gathered weights."""
        return self.folder / "checkpoint"

    def logits_path(self, version: int) -> Path:
        """Where the trainer leaves its logits for comparison."""
        return self.folder / f"logits.{version}.npy"


def enter(side: Side) -> Place:
    """Read the arguments RANK FOLDER PORT, and form the side's own process group."""
    rank, folder, port = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=TIMEOUT))
    size = FSDP_SIZE if side is Side.SENDER else TP_SIZE
    group = PrefixStore(side.value, store)
    dist.init_process_group("gloo", store=group, rank=rank, world_size=size)
    return Place(side, rank, folder, store)


def declare(place: Place, declaration: Declaration) -> tuple[TransferPlan, Manifest]:
    """Write this rank's manifest, wait for the plan, and return it with the merged manifest."""
    path = place.folder / f"{place.side.value}.{place.rank}.manifest.json"
    write_atomically(path, dump(fold(declaration)))
    place.report("declared", file=path.name, buffers=len(declaration.buffers))
    place.store.wait(["plan"], timedelta(seconds=TIMEOUT))
    merged = SENDER if place.side is Side.SENDER else RECEIVER
    plan = load(place.folder / PLAN, TransferPlan).value
    return plan, load(place.folder / merged, Manifest).value


def probe(config: ModelConfig) -> Tensor:
    """Return the sequences that the trainer learns and the engine is asked about, [2, SEQUENCE]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab_size, (2, SEQUENCE), generator=generator)

"""Orders from the trainer to the engine's ranks, through the store.

`EngineRanks` is to `Publisher` what `SglangServer` is in production, where the same orders travel
in HTTP requests.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from examples.live.place import HOST, MEETING, TIMEOUT, WORLD, told
from tranship.runtime.frameworks.sglang.control import (
    Bind,
    Meeting,
    Update,
    committed_file,
    serialized,
)
from tranship.schema.manifest import Manifest
from tranship.schema.plan import TransferPlan

UPDATE, CHECK, END = "update", "check", "end"


@dataclass(slots=True)
class EngineRanks:
    """Both ranks of the engine; they bind with the first update.

    Attributes:
        folder: where plan and manifest are.
        store: a connection that no other thread waits with.
    """

    folder: Path
    store: TCPStore
    _sent: int = 0
    _bound: bool = False

    @property
    def name(self) -> str:
        """What messages call the engine."""
        return "engine"

    def pause(self) -> None:
        """Stop generating: these ranks do not."""

    def update(self, version: int) -> None:
        """Receive a version on all ranks."""
        if not self._bound:
            self._order(UPDATE, serialized(self._bind(), 1)[0])
            self._bound = True
        self._order(UPDATE, serialized(Update(action="update", version=version), 1)[0])

    def flush(self) -> None:
        """Forget what was computed with earlier weights: these ranks compute nothing."""

    def resume(self) -> None:
        """Go on generating: these ranks do not."""

    def check(self, name: str) -> None:
        """Compare all ranks with what they make of the checkpoint of this name."""
        self._order(CHECK, name)

    def end(self) -> None:
        """End the ranks."""
        self._order(END, "")

    def _bind(self) -> Bind:
        port = self.store.port
        return Bind(
            action="bind",
            plan=committed_file(self.folder / "live.plan.json", TransferPlan),
            manifest=committed_file(self.folder / "engine.json", Manifest),
            meeting=Meeting(host=HOST, port=port, name=MEETING, transport="gloo", timeout=TIMEOUT),
            first_rank=0,
        )

    def _order(self, kind: str, text: str) -> None:
        """Send an order, and return when all ranks have done it."""
        self.store.set(f"order-{self._sent}", json.dumps([kind, text]))
        for rank in range(WORLD.receivers):
            told(self.store, f"done-{self._sent}", "engine", rank)
        self._sent += 1


def next_order(store: TCPStore, number: int) -> tuple[str, str]:
    """Wait for an order; return its kind and what belongs to it."""
    kind, text = json.loads(store.get(f"order-{number}"))
    return kind, text

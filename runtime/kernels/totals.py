"""Sums of digests, on the device in lanes and on the host."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tranship.runtime.kernels.launch import Launch
from tranship.runtime.kernels.tables import LANES
from tranship.schema.expression import IntArray


@dataclass(frozen=True, slots=True)
class Totals:
    """Digests that kernels have added to, in lanes, and what they add up to on the host.

    `lanes` is int64 `[entries, LANES]`, `host` int64 `[entries]` in memory that a GPU copies to
    without the host waiting. `steps` clear the lanes, and add them up into `host`.
    """

    lanes: Tensor
    host: IntArray
    steps: tuple[Launch, Launch]

    @classmethod
    def of(cls, entries: int, device: torch.device) -> "Totals":
        """Set memory aside for so many digests."""
        lanes = torch.zeros((entries, LANES), dtype=torch.int64, device=device)
        sums = torch.zeros(entries, dtype=torch.int64, device=device)
        host = torch.zeros(entries, dtype=torch.int64, pin_memory=device.type == "cuda")

        def clear() -> None:
            lanes.zero_()

        def add_up() -> None:
            torch.sum(lanes, dim=-1, out=sums)
            host.copy_(sums, non_blocking=True)

        # Torch loads its kernels when they first run, which must not be while they are recorded.
        add_up()
        return cls(lanes, host.numpy(), (clear, add_up))

    def clear(self) -> None:
        """Clear the lanes."""
        self.steps[0]()

    def add_up(self) -> None:
        """Add the lanes up, and bring the sums to the host."""
        self.steps[1]()

"""How fast a sender quantizes and packs, digests included, against a plain copy of as many bytes.

    python benchmarks/pack.py --case qwen3-8b-linears [--layers 24] [--repeat 9]

One GPU, no peer: all rounds of the sender's program, one after another, into its staging slots.
Prints Markdown, after comparing every byte that was packed with what `runtime/execute.py` packs.
"""

import argparse
import time

import torch
from measure import Table, device_copy_rate, event_ms, fraction, setup_lines
from shapes import Case, allocate, case, held_bytes

from tranship.runtime.execute import pack
from tranship.runtime.kernels.rounds import Kernels, bind_kernels
from tranship.runtime.program import Program, program
from tranship.schema.manifest import Side


def slots_of(own: Program, device: torch.device) -> list[torch.Tensor]:
    """Return the staging memory of each round."""
    staging = torch.zeros(own.staging_bytes, dtype=torch.uint8, device=device)
    return [staging[r.slot_offset : r.slot_offset + r.slot_size] for r in own.rounds]


def differing(
    own: Program, kernels: Kernels, buffers: list[torch.Tensor], slots: list[torch.Tensor]
) -> int:
    """Return how many bytes differ from what torch packs, over all rounds."""
    count = 0
    for item, slot in zip(own.rounds, slots, strict=True):
        slot.zero_()
        kernels.run(item.number)
        found = slot.clone()
        slot.zero_()
        pack(item, buffers, slot)
        count += int((found != slot).sum())
    return count


def measure(given: Case, repeat: int) -> None:
    """Print one row."""
    device = torch.device("cuda", 0)
    copy = device_copy_rate(device)
    torch.cuda.empty_cache()
    tensors = allocate(given.sender, 0, device, fill="random")
    start = time.monotonic()
    own = program(given.plan, Side.SENDER, 0)
    buffers = [tensors[use.name] for use in own.buffers]
    slots = slots_of(own, device)
    kernels = bind_kernels(own, buffers, slots)
    torch.cuda.synchronize()
    bind = time.monotonic() - start

    def step() -> None:
        kernels.begin()
        for item in own.rounds:
            kernels.run(item.number)

    ms = event_ms(step, repeats=repeat, warmup=2)
    wrong = differing(own, kernels, buffers, slots)
    moved = held_bytes(given.sender, 0) + held_bytes(given.receiver, 0)
    launches = [len(launched) for launched in kernels.rounds]
    for text in setup_lines():
        print(text)
    table = Table(
        ["case", "tensors", "rounds", "launches a round", "bind s", "ms", "GB/s", "of copy"]
    )
    table.head()
    part = fraction(moved, ms, copy)
    row = [given.name, f"{len(own.buffers)}", f"{len(own.rounds)}"]
    row += [f"{min(launches)}..{max(launches)}", f"{bind:.2f}", f"{ms:.2f}"]
    table.row(*row, f"{moved / ms / 1e6:.0f}", f"{part:.3f}")
    print(f"- bytes that differ from torch's: {wrong}; copy rate {copy:.0f} GB/s")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="qwen3-8b-linears")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--staging", type=int, default=1 << 30)
    given = parser.parse_args()
    measure(case(given.case, layers=given.layers, staging_bytes=given.staging), given.repeat)


if __name__ == "__main__":
    main()

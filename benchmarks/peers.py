"""How long others' ways of moving weights take: the same transfers, without tranship's runtime.

    python benchmarks/peers.py quantize|colocated|network --case qwen3-30b-experts --layers 14

`quantize` and `colocated` take one GPU, `network` takes two of one host. Prints Markdown: what it
ran on, the ceilings measured in the same run, and a row for every way, after a look at whether the
receiver's parameters hold the right bytes.
"""

import argparse
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import peer_parts
import peer_styles
import torch
import torch.distributed as dist
from measure import (
    Table,
    device_copy_rate,
    fraction,
    message_rate,
    rate,
    setup_lines,
    wall_ms,
)
from peer_parts import Part, Prepare
from peer_styles import COLOCATED, NETWORK, colocated_receiver, colocated_sender
from shapes import (
    MODELS,
    POISON,
    SCALE_SUFFIX,
    Case,
    allocate,
    case,
    checkpoint_views,
    forget_random,
    held_bytes,
    logical_values,
    storage_bytes,
)
from torch import Tensor

from tranship.runtime.quantization import quantize
from tranship.schema.expand import expand

LOOKED_AT = 6
"""Weights that are compared, spread evenly over all."""
BLOCK = (peer_parts.BLOCK, peer_parts.BLOCK)

# --- Right bytes ----------------------------------------------------------------------------------


class WrongBytes(Exception):
    """A receiver's parameter does not hold what was sent."""


def check(shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> None:
    """Compare some weights with what `tranship.runtime.quantization` makes of the same values.

    Scales must be equal. Codes may be one code apart: the peers multiply by a reciprocal that
    hardware approximates.

    Args:
        shapes: Of all logical tensors, by name.
        found: The receiver's parameters, or what a sender would send, by name.

    Raises:
        WrongBytes: something else is there.
    """
    names = [name for name in found if not name.endswith(SCALE_SUFFIX)]
    for name in names[:: max(1, len(names) // LOOKED_AT)]:
        values = logical_values(name, shapes[name], found[name].device)
        scales = found.get(name + SCALE_SUFFIX)
        if scales is None:
            if not torch.equal(found[name], values):
                raise WrongBytes(f"{name} differs")
            continue
        codes, expected = quantize(
            values,
            BLOCK,
            formula="divide",
            code_dtype=torch.float8_e4m3fn,
            scale_dtype=torch.float32,
        )
        if not torch.equal(scales, expected):
            raise WrongBytes(f"{int((scales != expected).sum())} scales of {name} differ")
        apart = codes_apart(found[name], codes)
        if apart > 1:
            raise WrongBytes(f"codes of {name} are up to {apart} apart")


def codes_apart(left: Tensor, right: Tensor) -> int:
    """Return how many codes of float8_e4m3fn lie at most between two tensors' elements."""
    return int((_ordinal(left) - _ordinal(right)).abs().max())


def _ordinal(codes: Tensor) -> Tensor:
    """Number the codes by value; both zeros are 0."""
    bits = codes.view(torch.uint8).to(torch.int16)
    magnitude = bits & 0x7F
    return torch.where(bits > 0x7F, -magnitude, magnitude)


def tensor_shapes(given: Case) -> dict[str, tuple[int, ...]]:
    """Shapes of the logical tensors of a case."""
    return {record.name: record.shape for record in expand(given.receiver, [0]).tensors}


# --- Memory ---------------------------------------------------------------------------------------


def trainer(given: Case, device: torch.device) -> list[Part]:
    """Allocate a sender; return its weights in the order in which they are sent."""
    tensors = allocate(given.sender, 0, device, fill="random")
    forget_random()
    return list(checkpoint_views(given.sender, 0, tensors).items())


def engine(given: Case, device: torch.device) -> tuple[dict[str, Tensor], list[Part]]:
    """Allocate a receiver; return its buffers, and where each part that is sent belongs."""
    tensors = allocate(given.receiver, 0, device, fill="poison")
    return tensors, list(checkpoint_views(given.receiver, 0, tensors).items())


def poison(tensors: Iterable[Tensor]) -> None:
    """Make every parameter wrong."""
    for tensor in tensors:
        storage_bytes(tensor).fill_(POISON)


def sizes(given: Case) -> tuple[int, int]:
    """Bytes of the weights that a case sends, and of the parameters that it writes."""
    return held_bytes(given.sender, 0), held_bytes(given.receiver, 0)


def preparation(given: Case) -> Prepare:
    """What senders of a case do first: quantize, if the receiver takes scales."""
    return peer_parts.quantized if given.receiver.quantization else peer_parts.plain


def heading(given: Case, title: str, ceilings: Sequence[str]) -> None:
    """Print what is measured, on what, and how fast it could be."""
    before, after = sizes(given)
    count = len(expand(given.sender, [0]).tensors)
    print(f"## {title}: {given.name}\n")
    print(f"{count:,} weights; {before / 1e9:.3f} GB in BF16, {after / 1e9:.3f} GB written\n")
    for line in [*setup_lines(), *(f"- ceiling: {ceiling}" for ceiling in ceilings)]:
        print(line)
    print()


# --- Quantize -------------------------------------------------------------------------------------


def run_quantize(given: Case, device: torch.device, repeat: int) -> None:
    """Quantize, and quantize into buckets, on one GPU in one process."""
    ceiling = device_copy_rate(device)
    heading(given, "Quantize", [f"device copy {ceiling:,.0f} GB/s (read and written)"])
    weights = trainer(given, device)
    looked_at = weights[:: max(1, len(weights) // LOOKED_AT)]
    check(tensor_shapes(given), dict(peer_parts.quantized_parts(looked_at)))
    forget_random()
    linears = [part for part in weights if peer_parts.is_quantized(*part)]
    size = sum(part[1].nbytes + peer_parts.bytes_quantized(part) for part in linears)
    ways = {
        "one launch per tensor": lambda: peer_parts.quantize_loop(linears),
        "the same, then torch.cat into buckets": lambda: peer_parts.concatenate(
            peer_parts.quantized_parts(linears)
        ),
    }
    table = Table(("way", "ms", "GB/s read and written", "of copy"))
    table.head()
    for title, way in ways.items():
        ms = wall_ms(way, device, repeats=repeat)
        part = fraction(size, ms, ceiling)
        table.row(title, f"{ms:.2f}", f"{rate(size, ms):,.0f}", f"{part:.3f}")


# --- Two processes on one GPU ---------------------------------------------------------------------


def run_colocated(name: str, options: Mapping[str, Any], device: torch.device, repeat: int) -> None:
    """Move weights between two processes on one GPU, in every style."""
    given = case(name, **options)
    ceiling = device_copy_rate(device) if device.type == "cuda" else float("inf")
    heading(given, "Colocated", [f"device copy {ceiling:,.0f} GB/s (read and written)"])
    size = sum(sizes(given))
    weights = trainer(given, device)
    context = torch.multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    child = context.Process(
        target=_colocated_engine, args=(name, options, device, repeat, theirs), daemon=True
    )
    child.start()
    theirs.close()
    table = Table(("way", "ms", "GB/s read and written", "of copy"))
    table.head()
    for title, style in COLOCATED.items():
        prepare = preparation(given)
        ms = colocated_sender(style, weights, mine, prepare=prepare, repeat=repeat)
        if wrong := mine.recv():
            raise WrongBytes(f"{title}: {wrong}")
        part = fraction(size, ms, ceiling)
        table.row(title, f"{ms:.2f}", f"{rate(size, ms):,.0f}", f"{part:.3f}")
    child.join()


def _colocated_engine(
    name: str, options: Mapping[str, Any], device: torch.device, repeat: int, connection: Connection
) -> None:
    """Be the receiver's process."""
    given = case(name, **options)
    tensors, parts = engine(given, device)
    for style in COLOCATED.values():
        colocated_receiver(
            style, dict(parts), connection, repeat=repeat, before=lambda: poison(tensors.values())
        )
        try:
            check(tensor_shapes(given), dict(parts))
        except WrongBytes as wrong:
            connection.send(str(wrong))
        else:
            connection.send("")
        forget_random()


# --- Two GPUs -------------------------------------------------------------------------------------


def run_network(name: str, options: Mapping[str, Any], kind: str, repeat: int) -> None:
    """Move weights between two GPUs, in every style; `kind` is a type of devices."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        arguments = (store, name, options, kind, repeat)
        torch.multiprocessing.spawn(_network_rank, args=arguments, nprocs=2)


def _network_rank(
    rank: int, store: str, name: str, options: Mapping[str, Any], kind: str, repeat: int
) -> None:
    """Be one of two processes."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", store, rank=rank, world_size=2, device_id=device)
    else:
        dist.init_process_group("gloo", store, rank=rank, world_size=2)
    _network_styles(rank, case(name, **options), device, repeat)
    dist.destroy_process_group()


def _network_ceilings(rank: int, device: torch.device) -> tuple[float, float]:
    """Measure messages and copies; a CPU, for trials, has no ceilings."""
    if device.type != "cuda":
        return float("inf"), float("inf")
    return message_rate(rank, device), device_copy_rate(device)


def _network_styles(rank: int, given: Case, device: torch.device, repeat: int) -> None:
    """Run every style, with preparation in its time, and then of parts prepared before."""
    ceiling, copy = _network_ceilings(rank, device)
    table = Table(("way", "prepared", "ms", "GB/s received", "of messages"))
    if rank == peer_styles.SENDER:
        ceilings = f"messages {ceiling:,.0f} GB/s", f"device copy {copy:,.0f} GB/s"
        heading(given, "Network", ceilings)
        table.head()
        parts, tensors = trainer(given, device), {}
    else:
        tensors, parts = engine(given, device)
    _, size = sizes(given)
    prepare, shapes = preparation(given), tensor_shapes(given)
    for when in ("in the time", "before") if prepare is peer_parts.quantized else ("not at all",):
        if when == "before":
            parts = prepare.parts(parts) if rank == peer_styles.SENDER else parts
            prepare = peer_parts.plain
        for title, style in NETWORK.items():
            ms = peer_styles.network(
                style,
                rank,
                parts,
                prepare=prepare,
                repeat=repeat,
                before=lambda: poison(tensors.values()),
            )
            if rank == peer_styles.RECEIVER:
                check(shapes, dict(parts))
                forget_random()
            dist.barrier()
            part = fraction(size, ms, ceiling)
            if rank == peer_styles.SENDER:
                table.row(title, when, f"{ms:.2f}", f"{rate(size, ms):,.0f}", f"{part:.3f}")


def main() -> None:
    """Measure one case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("quantize", "colocated", "network"))
    parser.add_argument("--case", choices=sorted(MODELS), default="qwen3-30b-experts")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--precision", choices=("fp8", "bf16"), default="fp8")
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    options = {"layers": given.layers, "precision": given.precision}
    if given.what == "quantize":
        run_quantize(case(given.case, **options), torch.device("cuda", 0), given.repeat)
    elif given.what == "colocated":
        run_colocated(given.case, options, torch.device("cuda", 0), given.repeat)
    else:
        run_network(given.case, options, "cuda", given.repeat)


if __name__ == "__main__":
    main()

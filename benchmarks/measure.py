"""How the measurements on GPUs take time, know what is possible, and print.

Rates are GB/s with GB = 10^9 bytes; times are milliseconds, medians. Everything that is printed is
Markdown.
"""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import torch
import torch.distributed as dist
from torch.cuda import nccl

MOST = 1.08
"""Largest fraction of a ceiling that is believed. A cast that reads twice what it writes was seen
at 1.01 to 1.02 of the copy rate; the rest is for clocks that change between the two."""


class ImpossibleRate(Exception):
    """A measured rate that the hardware cannot reach: the measurement is wrong."""


def fraction(size: float, ms: float, ceiling: float, *, most: float = MOST) -> float:
    """Return which part of a ceiling a measurement reached.

    Args:
        size: Bytes that the work moves at least, counted as `ceiling` counts them.
        ms: Time of the work.
        ceiling: GB/s.
        most: Largest fraction that is believed.

    Raises:
        ImpossibleRate: the fraction is larger than `most`, or the time is none.
    """
    if ms <= 0:
        raise ImpossibleRate(f"{size:,.0f} bytes in {ms} ms")
    reached = rate(size, ms) / ceiling
    if reached > most:
        raise ImpossibleRate(
            f"{size:,.0f} bytes in {ms:.3f} ms are {rate(size, ms):,.0f} GB/s, "
            f"{reached:.2f} of a ceiling of {ceiling:,.0f} GB/s"
        )
    return reached


def rate(size: float, ms: float) -> float:
    """Return GB/s."""
    return size / ms / 1e6


# --- Clocks ---------------------------------------------------------------------------------------


def synchronize(device: torch.device | str) -> None:
    """Wait for everything that a device was given; CPUs need no waiting."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def wall_ms(
    call: Callable[[], object],
    device: torch.device | str = "cuda",
    *,
    repeats: int = 5,
    warmup: int = 1,
) -> float:
    """Time a call on the host's clock, from its first instruction until the device has finished."""
    times: list[float] = []
    for number in range(warmup + repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        if number >= warmup:
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def event_ms(call: Callable[[], object], *, repeats: int = 5, warmup: int = 1) -> float:
    """Time a call by CUDA events on the current stream."""
    pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    for number in range(warmup + repeats):
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        call()
        pair[1].record()
        if number >= warmup:
            pairs.append(pair)
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


# --- Ceilings -------------------------------------------------------------------------------------


def device_copy_rate(
    device: torch.device | str = "cuda", *, size: int = 4 << 30, repeats: int = 7
) -> float:
    """Measure GB/s of a copy within a device's memory, counting bytes read and bytes written.

    Args:
        device: A CUDA device.
        size: Bytes of each of two buffers, even, many times the cache. They are given back.
        repeats: How often; the median counts.
    """
    with torch.cuda.device(device):
        ms = _copy_ms(size, repeats)
        torch.cuda.empty_cache()
    return rate(2 * size, ms)


def _copy_ms(size: int, repeats: int) -> float:
    source = torch.ones(size // 2, dtype=torch.int16, device="cuda")
    target = torch.empty_like(source)
    return event_ms(lambda: target.copy_(source), repeats=repeats, warmup=2)


def message_rate(
    rank: int, device: torch.device | str, *, size: int = 1 << 30, repeats: int = 8
) -> float:
    """Measure GB/s of messages from rank 0 to rank 1, back to back; both ranks call this.

    Args:
        rank: The caller's, 0 or 1, in the default process group.
        device: The caller's.
        size: Bytes of a message.
        repeats: Messages in a row.

    Returns:
        The rate that rank 1 saw, on both.
    """
    message = torch.zeros(size, dtype=torch.uint8, device=device)
    move = (lambda: dist.send(message, 1)) if rank == 0 else (lambda: dist.recv(message, 0))
    for _ in range(2):
        move()
    synchronize(device)
    dist.barrier()
    start = time.perf_counter()
    for _ in range(repeats):
        move()
    synchronize(device)
    seconds = torch.tensor([time.perf_counter() - start], dtype=torch.float64, device=device)
    dist.broadcast(seconds, 1)
    return rate(size * repeats, seconds.item() * 1e3)


# --- Output ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A Markdown table that prints each row when it is known."""

    columns: Sequence[str]

    def head(self) -> None:
        """Print the head."""
        self.row(*self.columns)
        self.row(*["---"] * len(self.columns))

    def row(self, *cells: str) -> None:
        """Print a row.

        Raises:
            ValueError: there are more or fewer cells than columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells, but {len(self.columns)} columns")
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)


def setup_lines() -> Iterator[str]:
    """Yield Markdown lines that say on what a measurement ran."""
    yield f"- date: {date.today().isoformat()}"
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = properties.total_memory / 1e9
        processors = properties.multi_processor_count
        yield f"- GPU {number}: {properties.name}, {memory:.0f} GB, {processors} SMs"
    yield f"- driver: {_driver()}"
    yield f"- Python {platform.python_version()}, torch {torch.__version__}, triton {_triton()}"
    yield f"- CUDA {torch.version.cuda}, NCCL {_nccl()}"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return shown.splitlines()[0].strip() if shown.strip() else "none"


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


def _nccl() -> str:
    if not torch.cuda.is_available():
        return "none"
    return ".".join(str(part) for part in nccl.version())

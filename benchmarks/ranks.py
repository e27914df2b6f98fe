"""What the measurements of tranship's own runtime share: ranks as processes, bound and checked."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from peers import tensor_shapes
from shapes import SCALE_SUFFIX, Case, checkpoint_views, logical_values
from torch import Tensor, nn
from torch.distributed import TCPStore

from tranship.runtime.live import LiveTensor
from tranship.runtime.quantization import quantize
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest

BLOCK = (128, 128)


def as_live(manifest: Manifest, rank: int, tensors: Mapping[str, Tensor]) -> dict[str, LiveTensor]:
    """Let one module hold all tensors, under their names."""
    holder = nn.Module()
    live: dict[str, LiveTensor] = {}
    for record in expand(manifest, [rank]).buffers:
        vars(holder)[record.name] = tensors[record.name]
        live[record.name] = LiveTensor(tensors[record.name], record.kind, holder, (), record.name)
    return live


def wrong_tensors(given: Case, tensors: Mapping[str, Tensor], most: int = 12) -> list[str]:
    """Return which of some tensors, spread over all, do not hold exactly what was to be sent."""
    found = checkpoint_views(given.receiver, 0, tensors)
    shapes = tensor_shapes(given)
    names = [name for name in found if not name.endswith(SCALE_SUFFIX)]
    wrong: list[str] = []
    for name in names[:: max(1, len(names) // most)]:
        values = logical_values(name, shapes[name], found[name].device)
        scales = found.get(name + SCALE_SUFFIX)
        if scales is None:
            good = torch.equal(found[name], values)
        else:
            codes, wanted = quantize(
                values,
                BLOCK,
                formula="divide",
                code_dtype=torch.float8_e4m3fn,
                scale_dtype=torch.float32,
            )
            same = found[name].view(torch.uint8).equal(codes.view(torch.uint8))
            good = same and torch.equal(scales, wanted)
        if not good:
            wrong.append(name)
    return wrong


def store(port: int, *, serves: bool) -> TCPStore:
    """Connect to the rendezvous of one measurement."""
    return TCPStore("127.0.0.1", port, is_master=serves, timeout=timedelta(seconds=120))


def run_ranks(rank: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run `rank(number, *arguments)` in `count` processes of their own."""
    multiprocessing.spawn(rank, arguments, nprocs=count, join=True)


@contextlib.contextmanager
def seconds(found: dict[str, float], name: str) -> Iterator[None]:
    """Measure a block with the clock that all processes of a host share."""
    start = time.monotonic()
    yield
    found[name] = time.monotonic() - start


def spread(values: Sequence[float]) -> str:
    """Return the median with the least and the greatest."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.2f} [{ordered[0]:.2f}..{ordered[-1]:.2f}]"

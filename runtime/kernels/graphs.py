"""Launches that are the same in every step, as one call: on a GPU, recorded in a CUDA graph."""

from collections.abc import Sequence
from functools import partial

import torch

from tranship.runtime.kernels.launch import Launch


def as_one(launches: Sequence[Launch], device: torch.device, *, record: bool = True) -> Launch:
    """Return one call that enqueues all of `launches` to the current stream.

    Recording calls them once, which does not run them: they must allocate nothing, wait for
    nothing, and have been compiled. `record` tells whether they are such.
    """
    if device.type != "cuda" or not record or not launches:
        return partial(_each, launches)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as NCCL's watchdog, may go on calling CUDA meanwhile.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            _each(launches)
        finally:
            graph.capture_end()
    return partial(_replay, graph, launches)


def _replay(graph: torch.cuda.CUDAGraph, launches: Sequence[Launch]) -> None:
    # They hold the tables that the graph has addresses of.
    del launches
    graph.replay()


def _each(launches: Sequence[Launch]) -> None:
    for launch in launches:
        launch()

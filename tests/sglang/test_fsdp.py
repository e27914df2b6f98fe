"""A live FSDP2 model is published to a real SGLang engine, which holds every byte.

What the engine must hold is what its own `load_weights` makes of the weights that DTensor gathers,
quantized by plain torch.
"""

import multiprocessing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tests.sglang import fsdp_ranks
from tests.sglang.deliveries import RECEIVED, TP, Delivery, deliver
from tests.sglang.test_trace import pytestmark
from tranship.schema.codec import load
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest

__all__ = ["pytestmark"]

RANKS = 3
CHANGES = {"num_hidden_layers": 2, "intermediate_size": 512, "vocab_size": 1001}
"""Three ranks divide neither these rows nor those of queries and keys, nor into whole blocks."""


def test_an_engine_holds_every_version_as_it_would_load_it(tmp_path: Path) -> None:
    delivery = Delivery("fsdp", tmp_path / "fsdp", "qwen3", CHANGES, True, RANKS)
    delivery.prepare()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    reports = deliver([delivery], store, tmp_path, lambda each: started(each, store.port))
    assert reports == [RECEIVED] * TP
    rows = rows_of("model.layers.0.self_attn.q_proj.weight", delivery.folder)
    assert rows == [342, 342, 340]


def rows_of(name: str, folder: Path) -> list[int]:
    """Return how many rows of a tensor each rank of the trainer has."""
    sender = expand(load(folder / "sender.json", Manifest).value)
    return [buffer.shape[0] for buffer in sender.buffers if buffer.name == name]


def started(delivery: Delivery, port: int) -> list[ForkServerProcess]:
    """Start a trainer."""
    context = multiprocessing.get_context("forkserver")
    found = [
        context.Process(target=fsdp_ranks.main, args=(delivery, rank, port))
        for rank in range(RANKS)
    ]
    for process in found:
        process.start()
    return found

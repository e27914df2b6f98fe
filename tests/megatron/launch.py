"""Start the processes of a case, each a fork of one that has imported Megatron-core already."""

import multiprocessing
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import torch
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore

from tests.megatron import ranks
from tests.megatron.cases import CASES, Case
from tests.megatron.convert import Weights
from tests.models.produced import made
from tests.runtime.trainings import (
    COMPILED,
    LIMIT,
    VERSIONS,
    check_errors,
    commit,
    merged,
    wait_declared,
)
from tranship.schema.codec import dump
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Side
from tranship.schema.policy import Allowance, Policy

POLICY = Policy(
    format="tranship.policy/1",
    allow=(
        Allowance(
            edge="cast",
            tensors="*norm.weight",
            sender_dtype=DType.F32,
            receiver_dtype=DType.BF16,
            reason="layers of plain torch keep norms in float32",
        ),
    ),
)


@dataclass(frozen=True)
class Done:
    """What a case's processes have left in a folder."""

    case: Case
    folder: Path
    sender: Manifest

    def weights(self, number: int = 1) -> Weights:
        """Every logical tensor of a version, in BF16."""
        return torch.load(self.folder / f"{number}-weights.pt")

    def held(self, rank: int) -> Weights:
        """What a rank held under each name when it declared."""
        return torch.load(self.folder / f"{rank}.pt")


@cache
def context_and_store() -> tuple[ForkServerContext, TCPStore]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([ranks.__name__, "megatron.core.models.gpt"])
    return context, TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def run(name: str, folder: Path) -> Done:
    """Run a case: all senders, and then its receivers, if it has any."""
    case, (_, store) = CASES[name], context_and_store()
    whole = case.whole(folder)
    (folder / "whole.json").write_bytes(dump(whole))
    for number in VERSIONS:
        torch.save(random_weights(whole, number), folder / f"{number}-weights.pt")
    processes = start(name, case, Side.SENDER, folder)
    try:
        if case.receivers:
            keys = PrefixStore(name, store)
            sender = wait_declared(keys, case.world.senders, folder)
            commit(folder, sender, receiver_of(case, folder), POLICY)
            keys.set(COMPILED, "yes")
            processes += start(name, case, Side.RECEIVER, folder)
        for process in processes:
            process.join(LIMIT)
    finally:
        for process in processes:
            process.kill()
    check_errors(folder)
    return Done(case, folder, merged(folder, case.world.senders))


def start(name: str, case: Case, side: Side, folder: Path) -> list[ForkServerProcess]:
    """Start the ranks of one side."""
    context, store = context_and_store()
    count = case.world.senders if side is Side.SENDER else case.world.receivers
    given = [(name, case, side, rank, store.port, folder) for rank in range(count)]
    started = [context.Process(target=ranks.main, args=each) for each in given]
    for process in started:
        process.start()
    return started


def random_weights(whole: Manifest, seed: int) -> Weights:
    """Every logical tensor with random values in BF16."""
    generator = torch.Generator().manual_seed(seed)
    tensors = expand(whole, []).tensors
    return {t.name: torch.randn(t.shape, generator=generator).bfloat16() for t in tensors}


def receiver_of(case: Case, folder: Path) -> Manifest:
    """Declare the engine by SGLang's layout, in FP8 if the trainer holds it."""
    sizes, fp8 = {"tp_size": case.receivers}, case.transformer_engine
    return made(folder, case.architecture, "sglang", sizes, fp8=fp8, **case.changes)

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
from tests.megatron.ranks import COMPILED, DECLARED, VERSIONS
from tests.models.produced import made
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.schema.codec import dump, load
from tranship.schema.dtypes import DType
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Side
from tranship.schema.merge import merge
from tranship.schema.policy import Allowance, Policy
from tranship.schema.transfer import Options

LIMIT = 120
"""Seconds after which processes that hang are ended; they take a few."""

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
    processes = start(name, Side.SENDER, case.world.senders, folder)
    try:
        if case.receivers:
            keys = PrefixStore(name, store)
            keys.wait([f"{DECLARED}-{rank}" for rank in range(case.world.senders)])
            check(folder)
            compile_case(case, folder, merged(case, folder))
            keys.set(COMPILED, "yes")
            processes += start(name, Side.RECEIVER, case.receivers, folder)
        for process in processes:
            process.join(LIMIT)
    finally:
        for process in processes:
            process.kill()
    check(folder)
    return Done(case, folder, merged(case, folder))


def start(name: str, side: Side, count: int, folder: Path) -> list[ForkServerProcess]:
    """Start the ranks of one side."""
    context, store = context_and_store()
    given = [(name, side, rank, store.port, str(folder)) for rank in range(count)]
    started = [context.Process(target=ranks.main, args=each) for each in given]
    for process in started:
        process.start()
    return started


def check(folder: Path) -> None:
    """Raise what a process has raised."""
    errors = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.error"))]
    assert not errors, "\n".join(errors)


def random_weights(whole: Manifest, seed: int) -> Weights:
    """Every logical tensor with random values in BF16."""
    generator = torch.Generator().manual_seed(seed)
    tensors = expand(whole, []).tensors
    return {t.name: torch.randn(t.shape, generator=generator).bfloat16() for t in tensors}


def merged(case: Case, folder: Path) -> Manifest:
    """Merge what all senders have declared."""
    files = [folder / f"{rank}.json" for rank in range(case.sizes.world_size)]
    return merge([(file.name, load(file, Manifest).value) for file in files])


def compile_case(case: Case, folder: Path, sender: Manifest) -> None:
    """Compile and verify the plan to SGLang's layout, and write it and both manifests."""
    sizes, fp8 = {"tp_size": case.receivers}, case.transformer_engine
    receiver = made(folder, case.architecture, "sglang", sizes, fp8=fp8, **case.changes)
    plan = compile_transfer(sender, receiver, POLICY)
    named = digests_of(sender, receiver, POLICY, None, Options())
    assert verify(plan, sender, receiver, POLICY, digests=named, options=Options()) == ()
    for name, document in (("sender", sender), ("receiver", receiver), ("plan", plan)):
        (folder / f"{name}.json").write_bytes(dump(document))

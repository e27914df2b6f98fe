"""What the processes of a case do: ranks of a live Megatron-core model, and of a receiver."""

import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore, Store

from tests.megatron.build import build, load, parallel, wrapped
from tests.megatron.cases import CASES, Case
from tests.megatron.convert import Weights, whole_tensors
from tests.megatron.stand_ins import build_without_gpu
from tests.runtime.live_models import model_of
from tranship.runtime.frameworks.megatron.chunks import megatron_tensors
from tranship.runtime.frameworks.megatron.declare import megatron_declaration
from tranship.runtime.frameworks.megatron.mesh import parallel_axes
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Live, Receiver, Sender
from tranship.runtime.transports.gloo import GlooTransport, connect_gloo
from tranship.schema import codec
from tranship.schema.fold import fold
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan

VERSIONS = (1, 2)
"""What is published, in this order; `VERSION.pt` has the weights of each."""

DECLARED, COMPILED = "declared", "compiled"
"""Keys by which it is told that a rank's declaration (`-RANK` follows), and the plan, is there."""


def main(name: str, side: Side, rank: int, port: int, folder: str) -> None:
    """Be one rank of a case; a file `SIDE-RANK.error` tells what went wrong."""
    torch.set_num_threads(1)
    work: Callable[[Case, int, Store, Path], None] = send if side is Side.SENDER else receive
    try:
        work(CASES[name], rank, PrefixStore(name, TCPStore("127.0.0.1", port)), Path(folder))
    except Exception:
        Path(folder, f"{side}-{rank}.error").write_text(traceback.format_exc(), encoding="utf-8")
        # Who waits for this rank goes on, and finds the file.
        PrefixStore(name, TCPStore("127.0.0.1", port)).set(f"{DECLARED}-{rank}", "no")


def send(case: Case, rank: int, store: Store, folder: Path) -> None:
    """Build, load and declare; write the declaration and what is held; then publish.

    Nothing is published if the case has no receivers.
    """
    build_without_gpu()
    size = case.sizes.world_size
    trainer = PrefixStore("trainer", store)
    dist.init_process_group(
        "gloo", store=trainer, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    parallel(case)
    models = build(case)
    chunks = wrapped(case, models)
    version(case, models, 1, folder)
    whole = codec.load(folder / "whole.json", Manifest).value
    declared = megatron_declaration(chunks, whole, rank=rank, world_size=size, axes=parallel_axes())
    live = megatron_tensors(chunks)
    held = {record.name: live[record.name].tensor for record in declared.buffers}
    torch.save(held, folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_bytes(codec.dump(fold(declared)))
    store.set(f"{DECLARED}-{rank}", "yes")
    if case.receivers:
        store.wait([COMPILED])
        end = connect_gloo(store, case.world, Side.SENDER, rank, 60.0)
        publish(case, models, end, live, folder)
    dist.destroy_process_group()


def version(case: Case, chunks: list[nn.Module], number: int, folder: Path) -> None:
    """Load the weights of a version, in place."""
    weights: Weights = torch.load(folder / f"{number}-weights.pt")
    load(case, chunks, whole_tensors(case, weights))


def publish(
    case: Case, models: list[nn.Module], end: GlooTransport, live: Live, folder: Path
) -> None:
    """Send every version, as a trainer does after each step."""
    plan = codec.load(folder / "plan.json", TransferPlan).value
    manifest = codec.load(folder / "sender.json", Manifest).value
    session = Sender.bind(plan, manifest, live, end, dist.get_rank())
    for number in VERSIONS:
        version(case, models, number, folder)
        session.publish(number)


def receive(case: Case, rank: int, store: Store, folder: Path) -> None:
    """Receive every version, and write what is held after each."""
    plan = codec.load(folder / "plan.json", TransferPlan).value
    manifest = codec.load(folder / "receiver.json", Manifest).value
    model = model_of(manifest, rank)
    live = live_tensors(model)
    end = connect_gloo(store, case.world, Side.RECEIVER, rank, 60.0)
    session = Receiver.bind(plan, manifest, live, end, rank)
    for number in VERSIONS:
        session.receive(number)
        held = {name: tensor.tensor for name, tensor in live.items()}
        torch.save(held, folder / f"received-{rank}-{number}.pt")

"""What the processes of a case do: ranks of a live Megatron-core model, and of a receiver."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)
from torch.distributed.distributed_c10d import PrefixStore, Store

from tests.megatron.build import build, load, parallel, wrapped
from tests.megatron.cases import Case
from tests.megatron.convert import Weights, whole_tensors
from tests.megatron.stand_ins import build_without_gpu
from tests.runtime.live_models import model_of
from tests.runtime.trainings import (
    COMPILED,
    VERSIONS,
    errors_told,
    publish_versions,
    tell_declared,
)
from tranship.runtime.frameworks.megatron.chunks import megatron_tensors
from tranship.runtime.frameworks.megatron.declare import megatron_declaration
from tranship.runtime.frameworks.megatron.mesh import parallel_axes
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver
from tranship.runtime.transports.gloo import connect_gloo
from tranship.schema import codec
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan


def main(name: str, case: Case, side: Side, rank: int, port: int, folder: Path) -> None:
    """Be one rank of a case, which meets the others at a prefix of the store."""
    torch.set_num_threads(1)
    work: Callable[[Case, int, Store, Path], None] = send if side is Side.SENDER else receive
    store = PrefixStore(name, TCPStore("127.0.0.1", port))
    with errors_told(store, side, rank, folder):
        work(case, rank, store, folder)


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
    version(case, models, folder, VERSIONS[0])
    whole = codec.load(folder / "whole.json", Manifest).value
    declared = megatron_declaration(chunks, whole, rank=rank, world_size=size, axes=parallel_axes())
    live = megatron_tensors(chunks)
    held = {record.name: live[record.name].tensor for record in declared.buffers}
    torch.save(held, folder / f"{rank}.pt")
    tell_declared(declared, store, rank, folder)
    if case.receivers:
        store.wait([COMPILED])
        end = connect_gloo(store, case.world, Side.SENDER, rank, 60.0)
        publish_versions(folder, live, end, rank, partial(version, case, models, folder))
    dist.destroy_process_group()


def version(case: Case, chunks: list[nn.Module], folder: Path, number: int) -> None:
    """Load the weights of a version, in place."""
    weights: Weights = torch.load(folder / f"{number}-weights.pt")
    load(case, chunks, whole_tensors(case, weights))


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

"""What a rank of either trainer does: declare, train, publish; and gather, for the check."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore

from examples.live.checkpoint import write_quantized
from examples.live.orders import EngineRanks
from examples.live.place import MEETING, TIMEOUT, VERSIONS, WORLD, Place, connect_store
from tranship.runtime.hooks import Publisher
from tranship.runtime.session import Live
from tranship.runtime.transports.gloo import GlooTransport, connect_gloo
from tranship.schema.codec import dump, write_atomically
from tranship.schema.fold import fold
from tranship.schema.manifest import Side
from tranship.schema.records import Declaration


@dataclass(frozen=True)
class Training:
    """What is different from trainer to trainer.

    Attributes:
        held: the model, or its tensors by the names that are declared.
        declare: declares them as they are now.
        step: changes the weights, as the training of this version does.
        gather: returns the whole weights by their names in a checkpoint, on rank 0 at least.
    """

    held: nn.Module | Live
    declare: Callable[[], Declaration]
    step: Callable[[int], None]
    gather: Callable[[], Mapping[str, Tensor]]


def train(place: Place, training: Training) -> None:
    """Declare, wait for the plan, and publish every version."""
    declared = training.declare()
    write_atomically(place.folder / f"trainer.{place.rank}.json", dump(fold(declared)))
    place.tell("declared", buffers=len(declared.buffers))
    place.store.wait(["plan"])
    engine = EngineRanks(place.folder, connect_store(place.store.port))
    publisher = Publisher(
        place.folder / "live.plan.json",
        place.folder / "trainer.json",
        training.held,
        connect=lambda: connect(place),
        rank=place.rank,
        engines=[engine] if place.rank == 0 else [],
        declare=training.declare,
    )
    for version in VERSIONS:
        training.step(version)
        stats = publisher.publish()
        place.tell(f"published-{version}", sent=stats.bytes_sent)
        weights = training.gather()
        if place.rank == 0:
            name = f"version-{version}.safetensors"
            write_quantized(weights, place.folder / name)
            engine.check(name)
    publisher.close()
    if place.rank == 0:
        engine.end()


def connect(place: Place) -> GlooTransport:
    """Meet the ranks of the engine; on GPUs it would be `connect_cuda_push` or another."""
    store = PrefixStore(MEETING, place.store)
    return connect_gloo(store, WORLD, Side.SENDER, place.rank, TIMEOUT)

"""vLLM's weight transfer by a plan: weights arrive in place, in an engine that stays loaded.

vLLM 0.33.0 distributed/weight_transfer/base.py says what an engine does, and when it is called.
Importing this module imports vLLM.
"""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tranship.runtime.bind import bind, location
from tranship.runtime.frameworks.tracing.deepgemm import POWER_OF_TWO
from tranship.runtime.frameworks.tracing.ranks import lasting_tensors
from tranship.runtime.frameworks.vllm.kept import find_reworked
from tranship.runtime.frameworks.vllm.recipes import AbsorbedWeights
from tranship.runtime.frameworks.vllm.trace import PASSING
from tranship.runtime.live import LiveTensor
from tranship.runtime.session import Receiver, State, require_own_plan
from tranship.runtime.transports.named import TRANSPORTS, connect_receiver
from tranship.runtime.transports.protocol import World
from tranship.schema.codec import load
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.expand import declared_buffers, expand
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan
from tranship.schema.records import BufferRecord

_base: Any = importlib.import_module("vllm.distributed.weight_transfer.base")


@dataclass
class InitInfo(_base.WeightTransferInitInfo):
    """What every worker is told once.

    Attributes:
        plan, manifest: files on the worker's host. Their digests are compared with those of all
            other ranks before the first byte of an update.
        host, port: a `TCPStore` that the trainer serves.
        name: what tells this meeting from all others at the same store: a prefix, under which the
            trainer meets, too. Engines that are initialized again need another one.
        transport: one of `TRANSPORTS`.
        timeout: how long a rank may keep the others waiting, in seconds.
        first_rank: the receiver rank of this engine's first worker: a plan may be of several
            engines, and each of them numbers its workers from 0.
    """

    plan: str
    manifest: str
    host: str
    port: int
    name: str
    transport: str = "nccl"
    timeout: float = 300.0
    first_rank: int = 0


@dataclass
class UpdateInfo(_base.WeightTransferUpdateInfo):
    """What every worker is told for an update: the version that the trainer publishes."""

    version: int


class TranshipWeightTransferEngine(_base.WeightTransferEngine):
    """Receives by a plan into the tensors of a worker's model, without `load_weights`.

    vLLM's workers call `init_transfer_engine` once and `receive_weights` per update. A trainer
    publishes the same versions with `Sender`.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    receiver: Receiver | None = None
    absorbed: AbsorbedWeights | None = None
    rewritten: Sequence[Tensor] = ()

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Meet the trainer, and bind this worker's model to the plan.

        Raises:
            DiagnosticError: as `Receiver.bind`; TS880, a layer does not keep its weights as they
                are loaded, or where they are; TS881, the transport has no such name.
            TransportError: the store cannot be reached, or not all ranks came in time.
        """
        self.shutdown()
        rank = init_info.first_rank + self._rank()
        manifest = load(init_info.manifest, Manifest).value
        declared = declared_buffers(manifest, rank)
        if findings := list(self._unfit(init_info, rank, declared)):
            raise DiagnosticError(findings)
        plan = load(init_info.plan, TransferPlan).value
        live = lasting_tensors(self.model, PASSING, {record.name for record in declared})
        # What is wrong here is told before this rank lets others wait for it.
        require_own_plan(plan, manifest, Side.RECEIVER, rank)
        bind(live, manifest, Side.RECEIVER, rank)
        world = World(plan.sender.world_size, plan.receiver.world_size)
        transport = connect_receiver(init_info, world, rank, self.device)
        absorbed = AbsorbedWeights(self.model)
        recipes = absorbed.recipes({step.recipe for step in plan.derived})
        self.receiver = Receiver.bind(plan, manifest, live, transport, rank, recipes)
        self.absorbed = absorbed
        self.rewritten = _rewritten(manifest, rank, live)

    def _unfit(
        self, init_info: InitInfo, rank: int, declared: Sequence[BufferRecord]
    ) -> Iterator[Diagnostic]:
        where = location(Side.RECEIVER, rank)
        if init_info.transport not in TRANSPORTS:
            message = f"transport {init_info.transport!r} is none of {', '.join(TRANSPORTS)}"
            yield Diagnostic("TS881", message, where)
        if self.parallel_config.enable_eplb:
            message = "experts move between ranks while the engine serves: it has enable_eplb"
            yield Diagnostic("TS880", message, where, help="start the engine without it")
        powers = {each.name for each in declared if each.encoding.scale_values == POWER_OF_TWO}
        yield from find_reworked(self.model, where, powers)

    def _rank(self) -> int:
        """Return this worker's rank among those of all data-parallel replicas."""
        parallel = self.parallel_config
        return int(parallel.data_parallel_index * parallel.world_size + parallel.rank)

    def start_weight_update(self) -> None:
        """Do nothing: weights are written in place, in one update."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Receive one version.

        Raises:
            DistributedError: no rank has committed the version. Unless that was found before the
                first byte, weights have become NaN, until a later update succeeds: vLLM goes on
                serving if it is asked to, and nobody is to take a mixture for a version.
            RuntimeError: the engine is not initialized.
        """
        if self.receiver is None or self.absorbed is None:
            raise RuntimeError("init_transfer_engine comes before the first update")
        self.absorbed.begin()
        try:
            self.receiver.receive(update_info.version)
        finally:
            if self.receiver.state is State.TORN:
                for tensor in self.rewritten:
                    tensor.fill_(math.nan)

    def finish_weight_update(self) -> None:
        """Refuse to serve what is not one version.

        Raises:
            RuntimeError: no update has been received whole since the last that was torn.
        """
        if self.receiver is None or not self.receiver.serving_allowed:
            raise RuntimeError("the model does not hold all of one version")

    def shutdown(self) -> None:
        """Give back what binding took."""
        if self.receiver is not None:
            self.receiver.close()
            self.receiver = None


def _rewritten(manifest: Manifest, rank: int, live: Mapping[str, LiveTensor]) -> tuple[Tensor, ...]:
    """Return tensors of which an update writes every element; some are left out, norms are not."""
    return tuple(
        live[record.name].tensor
        for record in expand(manifest, [rank]).buffers
        if record.pieces and not record.fills and record.encoding.kind == "plain"
    )

"""vLLM's weight transfer by a plan: weights arrive in place, in an engine that stays loaded.

vLLM 0.33.0 distributed/weight_transfer/base.py says what an engine does, and when it is called.
Importing this module imports vLLM.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from torch.distributed import (
    TCPStore,  # pyright: ignore[reportPrivateImportUsage] -- documented there
)

from tranship.runtime.bind import location
from tranship.runtime.frameworks.tracing.ranks import lasting_tensors
from tranship.runtime.frameworks.vllm.kept import find_reworked
from tranship.runtime.frameworks.vllm.trace import PASSING
from tranship.runtime.session import Receiver
from tranship.runtime.transports.named import TRANSPORTS, connect_by_name
from tranship.runtime.transports.protocol import World
from tranship.schema.codec import load
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan

_base: Any = importlib.import_module("vllm.distributed.weight_transfer.base")


@dataclass
class InitInfo(_base.WeightTransferInitInfo):
    """What every worker is told once.

    Attributes:
        plan, manifest: files on the worker's host. Their digests are compared with those of all
            other ranks before the first byte of an update.
        host, port: where rank 0 of the trainer serves a `TCPStore` for this transfer alone.
        transport: one of `TRANSPORTS`.
        timeout: how long a rank may keep the others waiting, in seconds.
    """

    plan: str
    manifest: str
    host: str
    port: int
    transport: str = "nccl"
    timeout: float = 300.0


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

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Meet the trainer, and bind this worker's model to the plan.

        Raises:
            DiagnosticError: as `Receiver.bind`; TS880, a layer does not keep its weights as they
                are loaded; TS881, the transport has no such name.
            TransportError: not all ranks came in time.
        """
        self.shutdown()
        rank = self._rank()
        where = location(Side.RECEIVER, rank)
        if init_info.transport not in TRANSPORTS:
            message = f"transport {init_info.transport!r} is none of {', '.join(TRANSPORTS)}"
            raise DiagnosticError([Diagnostic("TS881", message, where)])
        if reworked := list(find_reworked(self.model, where)):
            raise DiagnosticError(reworked)
        plan = load(init_info.plan, TransferPlan).value
        manifest = load(init_info.manifest, Manifest).value
        declared = {buffer.name for buffer in expand(manifest, [rank]).buffers}
        live = lasting_tensors(self.model, PASSING, declared)
        world = World(plan.sender.world_size, plan.receiver.world_size)
        store = TCPStore(init_info.host, init_info.port, is_master=False)
        name, timeout = init_info.transport, init_info.timeout
        transport = connect_by_name(name, store, world, Side.RECEIVER, rank, self.device, timeout)
        self.receiver = Receiver.bind(plan, manifest, live, transport, rank)

    def _rank(self) -> int:
        """Return this worker's rank among those of all data-parallel replicas."""
        parallel = self.parallel_config
        return int(parallel.data_parallel_index * parallel.world_size + parallel.rank)

    def start_weight_update(self) -> None:
        """Do nothing: weights are written in place, in one update."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Receive one version.

        Raises:
            DistributedError: no rank has committed the version; unless that was found before the
                first byte, the model must not serve until a later update succeeds.
            RuntimeError: the engine is not initialized.
        """
        if self.receiver is None:
            raise RuntimeError("init_transfer_engine comes before the first update")
        self.receiver.receive(update_info.version)

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

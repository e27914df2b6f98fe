"""The end of a transfer that lies in an SGLang engine: a custom weight loader (SGLang 0.5.23).

    python -m sglang.launch_server ... \
        --custom-weight-loader tranship.runtime.frameworks.sglang.loader.receive

Every rank of the engine is then called with orders (`control.py`) by `update_weights_from_tensor`,
within the session that `begin_weight_update` opens and `end_weight_update` closes. The engine binds
once, and receives versions in place: no tensor moves, and CUDA graphs stay valid.

Whatever fails is raised. SGLang catches nothing that a custom loader raises, and would take any
return for success: the scheduler logs the error and ends, and the server with all its ranks (of a
`sglang.Engine`, the process that holds it). So an engine never serves a mixture of versions; but it
is gone also where an order was refused before anything was written, and has to be started again. In
a process that survives, as in a test, the session is as it was before an order that was refused.
"""

import importlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from torch import Tensor, nn

from tranship.runtime.bind import bind, location
from tranship.runtime.frameworks.sglang.control import (
    Bind,
    Close,
    CommittedFile,
    NamedTensors,
    Update,
    read_order,
)
from tranship.runtime.frameworks.sglang.layers import find_unfit
from tranship.runtime.frameworks.sglang.recipes import PostLoad, find_recipes
from tranship.runtime.live import LiveTensor, live_tensors
from tranship.runtime.session import Receiver
from tranship.runtime.transports.named import connect_receiver
from tranship.runtime.transports.protocol import World
from tranship.schema.codec import load
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.expand import declared_buffers
from tranship.schema.layouts import PACKED_SCALES
from tranship.schema.manifest import Manifest, Side
from tranship.schema.plan import TransferPlan

_ATTRIBUTE = "_tranship_session"
"""Where a model keeps its session: with the model it goes, too."""


def receive(model: nn.Module, named_tensors: NamedTensors) -> None:
    """Do what the trainer orders; SGLang calls this on every rank.

    Args:
        model: The rank's model.
        named_tensors: One uint8 tensor that `control.named_tensors` made.

    Raises:
        DiagnosticError: the order is wrong (TS870, TS873), the engine or its place is none for a
            plan (TS871, TS874), a file is another one than the trainer's (TS872), or the model is
            not what the plan is of, as `Receiver.bind`.
        DistributedError: the update failed on some rank, and the weights may be a mixture.
        TransportError: not all ranks met in time.
    """
    match read_order(named_tensors):
        case Bind() as order:
            _bind(model, order)
        case Update(version=version):
            _session(model).update(version)
        case Close():
            _close(model)


@dataclass(frozen=True, slots=True)
class Session:
    """What a model is bound to."""

    receiver: Receiver
    post_load: PostLoad

    def update(self, version: int) -> None:
        """Receive a version, and recompute what is derived from it.

        Raises:
            DistributedError: as `Receiver.receive`.
        """
        self.post_load.begin()
        self.receiver.receive(version)
        # A plan without derived buffers has not asked. SGLang leaves it to custom loaders, too.
        self.post_load()


def _session(model: nn.Module) -> Session:
    session = vars(model).get(_ATTRIBUTE)
    if session is None:
        advice = "send a bind order first, also to an engine that was started again"
        message = "an update was ordered, and the engine is not bound"
        raise DiagnosticError([Diagnostic("TS873", message, Location("control data"), help=advice)])
    return session


def _close(model: nn.Module) -> None:
    session: Session | None = vars(model).pop(_ATTRIBUTE, None)
    if session is not None:
        session.receiver.close()


def _bind(model: nn.Module, order: Bind) -> None:
    """Bind a model, in place of what it was bound to; if that fails, nothing has changed."""
    rank = order.first_rank + _tensor_parallel_rank()
    where = location(Side.RECEIVER, rank)
    plan = _committed(order.plan, TransferPlan)
    manifest = _committed(order.manifest, Manifest)
    declared = {record.name: record.layout for record in declared_buffers(manifest, rank)}
    packed = frozenset(name for name, layout in declared.items() if layout == PACKED_SCALES)
    if findings := find_unfit(model, where, packed):
        raise DiagnosticError(findings)
    # What is wrong with the model is told before this rank lets others wait for it.
    live = _declared_once(live_tensors(model), declared)
    device = bind(live, manifest, Side.RECEIVER, rank).device
    post_load = PostLoad(model)
    recipes = find_recipes((step.recipe for step in plan.derived), model, post_load)
    world = World(plan.sender.world_size, plan.receiver.world_size)
    transport = connect_receiver(order.meeting, world, rank, device)
    receiver = Receiver.bind(plan, manifest, live, transport, rank, recipes)
    _close(model)
    setattr(model, _ATTRIBUTE, Session(receiver, post_load))


def _tensor_parallel_rank() -> int:
    """Return this process's rank within its engine.

    Raises:
        DiagnosticError: TS874, SGLang numbers its ranks by more than that.
    """
    context: Any = importlib.import_module("sglang.srt.runtime_context")
    parallel = context.get_parallel()
    if parallel.pp_size > 1:
        message = f"the engine has {parallel.pp_size} pipeline stages"
        advice = "give the engine one stage, and as many ranks of tensor parallelism as it needs"
        found = Diagnostic("TS874", message, Location("control data"), help=advice)
        raise DiagnosticError([found])
    return int(parallel.tp_rank)


Model = TypeVar("Model", bound=BaseModel)


def _committed(file: CommittedFile, model: type[Model]) -> Model:
    """Read a file, and make sure that it is the one that is meant."""
    document = load(file.path, model)
    if document.digest != file.digest:
        found = Diagnostic(
            code="TS872",
            message=f"{file.path} has digest {document.digest}, the trainer means {file.digest}",
            at=Location(file.path),
            help="let trainer and engine see the same commit of the file",
        )
        raise DiagnosticError([found])
    return document.value


def _declared_once(
    live: Mapping[str, LiveTensor], names: Container[str]
) -> Mapping[str, LiveTensor]:
    """Leave out names of declared tensors that are second ones.

    The first forward pass of latent attention gives its projection another name
    (SGLang 0.5.23, models/deepseek_v2.py).
    """
    held = {_memory(tensor.tensor) for name, tensor in live.items() if name in names}
    return {
        name: tensor
        for name, tensor in live.items()
        if name in names or _memory(tensor.tensor) not in held
    }


def _memory(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()

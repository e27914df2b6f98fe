"""What a trainer tells the loader inside an SGLang engine, and the envelope that carries it there.

SGLang hands a custom weight loader named tensors and nothing else. So an order is JSON in one small
uint8 tensor. Nothing here imports SGLang: trainers need not have it.
"""

import base64
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from tranship.schema.codec import Source, dump, load, parse_json, validate
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location
from tranship.schema.manifest import Frozen
from tranship.schema.plan import Digest

LOADER = "tranship.runtime.frameworks.sglang.loader.receive"
"""What SGLang takes as `--custom-weight-loader`, and as `load_format` of every update."""

TENSOR = "tranship"
"""The name of the tensor that holds an order."""

Text = Annotated[str, Field(min_length=1, max_length=4096)]

NamedTensors: TypeAlias = Sequence[tuple[str, Tensor]]


class CommittedFile(Frozen):
    """A file as the engine's host sees it, and the digest of what it must say.

    The digest is that of `schema.codec.load`: it does not change with the layout of the file.
    """

    path: Text
    digest: Digest


class Meeting(Frozen):
    """Where the ranks of both sides meet.

    Attributes:
        host, port: a `TCPStore` that some other process serves.
        name: what tells this meeting from all others at the same store.
        transport: how weights travel.
        timeout: how long a rank may keep the others waiting, in seconds.
    """

    host: Text
    port: int = Field(ge=1, le=65535)
    name: Text
    transport: Literal["gloo", "nccl", "cuda_ipc", "cuda_push"]
    timeout: float = Field(gt=0, le=86400)


class Bind(Frozen):
    """Connect with the senders, and bind the engine's tensors to a plan.

    Both sides' numbers of ranks follow from the plan. Rank `tp_rank` of this engine is receiver
    rank `first_rank + tp_rank`.
    """

    action: Literal["bind"]
    plan: CommittedFile
    manifest: CommittedFile
    meeting: Meeting
    first_rank: int = Field(ge=0)


class Update(Frozen):
    """Receive a version, in place."""

    action: Literal["update"]
    version: int = Field(ge=0)


class Close(Frozen):
    """Give back what binding took."""

    action: Literal["close"]


class Order(Frozen):
    """One order, as it travels."""

    format: Literal["tranship.sglang/1"]
    order: Annotated[Bind | Update | Close, Field(discriminator="action")]


def committed_file(path: str | Path, model: type[BaseModel]) -> CommittedFile:
    """Name a file that lies at the same absolute path on the engine's host.

    Raises:
        DiagnosticError: TS100 to TS118, as `schema.codec.load`.
    """
    return CommittedFile(path=str(Path(path).resolve()), digest=load(path, model).digest)


def named_tensors(order: Bind | Update | Close) -> list[tuple[str, Tensor]]:
    """Return an order as `Engine.update_weights_from_tensor` takes it: uint8, one dim."""
    data = dump(Order(format="tranship.sglang/1", order=order))
    return [(TENSOR, torch.frombuffer(bytearray(data), dtype=torch.uint8))]


def serialized(order: Bind | Update | Close, tp_size: int) -> list[str]:
    """Return an order as SGLang's HTTP server takes it in `serialized_named_tensors`.

    That is SGLang's own envelope, base64 of a pickle, once for each rank. It holds the bytes
    themselves and no handle of shared memory, so that an engine on another host can read it. Only
    SGLang reads it, with its own unpickler, which allows little more than tensors.
    """
    data = pickle.dumps(named_tensors(order))
    return [base64.b64encode(data).decode("ascii")] * tp_size


def read_order(given: NamedTensors) -> Bind | Update | Close:
    """Read what SGLang hands a custom loader.

    Raises:
        DiagnosticError: TS870, it is not one uint8 tensor of the right name; TS101 to TS118, what
            the tensor holds is no order.
    """
    names = [name for name, _ in given]
    if names != [TENSOR]:
        raise _no_order(f"tensors {names} came instead of one named {TENSOR!r}")
    tensor = given[0][1]
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise _no_order(f"{TENSOR!r} is {tensor.dtype} {list(tensor.shape)}, not uint8 of one dim")
    try:
        text = bytes(cast("list[int]", tensor.tolist())).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_order(f"{TENSOR!r} does not hold UTF-8 text") from error
    source = Source(_PLACE, text)
    return validate(Order, parse_json(text, _PLACE), source).order


_PLACE = "control data"


def _no_order(message: str) -> DiagnosticError:
    advice = "make it with tranship.runtime.frameworks.sglang.control"
    return DiagnosticError([Diagnostic("TS870", message, Location(_PLACE), help=advice)])

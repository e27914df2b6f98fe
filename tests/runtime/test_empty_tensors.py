"""Tensors without elements, in a model that is traced and in live ones: nothing is written."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from tests.runtime.local_jobs import at_once
from tranship.compiler.pipeline import compile_transfer
from tranship.compiler.verify import digests_of, verify
from tranship.runtime.frameworks.fsdp import fsdp_declaration
from tranship.runtime.frameworks.tracing.declare import Engine, declare
from tranship.runtime.frameworks.tracing.tracer import trace_load
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender
from tranship.runtime.step import StepStats
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import World
from tranship.schema.check import check_manifest
from tranship.schema.fold import fold
from tranship.schema.manifest import Framework, Manifest
from tranship.schema.records import RoleRecord
from tranship.schema.transfer import Options

SHAPES = {"weight": (3, 4), "given": (0, 4), "bias": (3,)}
"""What a checkpoint has."""


class Held(nn.Module):
    """Holds weights beside all kinds of tensors without elements."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, 4), torch.nan, device=device))
        self.bias = nn.Parameter(torch.full((3,), torch.nan, device=device))
        self.given = nn.Parameter(torch.empty((0, 4), device=device))
        self.unused = nn.Parameter(torch.empty(0, dtype=torch.bfloat16, device=device))
        self.codes = nn.Parameter(
            torch.empty((0, 128), dtype=torch.float8_e4m3fn, device=device), requires_grad=False
        )
        self.register_buffer("order", torch.empty((2, 0), dtype=torch.int64, device=device))
        self.scratch = torch.empty(0, device=device)
        self.rest = self.weight.detach()[3:]
        self.also_unused = self.unused

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            self.get_parameter(name).data.copy_(tensor)


def trainer() -> nn.Module:
    model = nn.Module()
    for number, (name, shape) in enumerate(SHAPES.items()):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        model.register_parameter(name, nn.Parameter(values))
    return model


def traced() -> Manifest:
    model = Held("meta")
    checkpoint = {name: torch.empty(shape, device="meta") for name, shape in SHAPES.items()}
    trace = trace_load(model, checkpoint)
    engine = Engine(Framework(name="toy"), 1, (), rank=0)
    declared = declare(engine, live_tensors(model), trace, checkpoint)
    roles = {record.name: record.role for record in declared.buffers}
    empty = ("given", "unused", "also_unused", "codes", "order", "scratch", "rest")
    assert {name: roles[name] for name in empty} == dict.fromkeys(empty, RoleRecord())
    return fold(declared)


def test_tensors_without_elements_are_declared_and_bound_and_nothing_is_written_to_them() -> None:
    source, target, loaded = trainer(), Held("cpu"), Held("cpu")
    ours, theirs = fold(fsdp_declaration(source, rank=0, world_size=1)), traced()
    assert not check_manifest(ours)
    assert not check_manifest(theirs)
    plan = compile_transfer(ours, theirs)
    assert not verify(plan, ours, theirs, digests=digests_of(ours, theirs, None, None, Options()))
    (out,), (back,) = connect_locally(World(1, 1), timeout=20)
    with (
        Sender.bind(plan, ours, live_tensors(source), out, 0) as sender,
        Receiver.bind(plan, theirs, live_tensors(target), back, 0) as receiver,
    ):
        done = at_once([partial(sender.publish, 1), partial(receiver.receive, 1)])
    assert all(isinstance(stats, StepStats) for stats in done), done
    loaded.load_weights(source.state_dict().items())
    for (name, found), wanted in zip(target.named_parameters(), loaded.parameters(), strict=True):
        assert found.shape == wanted.shape
        assert torch.equal(found.isnan(), wanted.isnan()), name
        assert torch.equal(found, wanted), name

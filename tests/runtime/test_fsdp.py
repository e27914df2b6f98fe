"""What is declared of an FSDP2 model is what its ranks hold."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import (
    _StridedShard,  # pyright: ignore[reportPrivateUsage] -- what FSDP2 places with
)

from tests.runtime.fake_ranks import fake_rank, mesh_of, on_all_ranks, shard
from tests.runtime.live_models import model_of
from tranship.compiler.pipeline import compile_transfer
from tranship.runtime.frameworks.fsdp import fsdp_declaration, mesh_axes
from tranship.runtime.live import live_tensors
from tranship.runtime.session import Receiver, Sender
from tranship.runtime.step import StepStats
from tranship.runtime.transports.local import connect_locally
from tranship.runtime.transports.protocol import World
from tranship.schema.check import check_manifest
from tranship.schema.diagnostics import DiagnosticError, known_codes
from tranship.schema.dtypes import DType
from tranship.schema.fold import fold
from tranship.schema.manifest import (
    Alias,
    Axis,
    BufferFamily,
    Kind,
    Manifest,
    Piece,
    Side,
    TensorFamily,
)
from tranship.schema.merge import merge
from tranship.schema.records import BufferRecord, Declaration, Ints, TensorRecord

ROWS = 10


class Toy(nn.Module):
    """Weights that do not divide evenly, tied ones, and buffers of both kinds."""

    def __init__(self, rows: int = ROWS) -> None:
        super().__init__()
        self.embed = nn.Embedding(rows, 6)
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(6, rows, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("correction_bias", torch.zeros(4))
        self.register_buffer("inv_freq", torch.zeros(3), persistent=False)
        self.scratch = torch.zeros(5)
        for number, tensor in enumerate((*self.parameters(), *self.buffers())):
            with torch.no_grad():
                tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 1000.0 * number)


def dense(rows: int = ROWS) -> dict[str, Tensor]:
    """Every tensor of the model before it is sharded."""
    return {name: live.tensor.clone() for name, live in live_tensors(Toy(rows)).items()}


MESHES: list[tuple[dict[str, int], Mapping[str, Placement]]] = [
    ({"dp": 3}, {}),
    ({"dp": 4}, {}),
    ({"replica": 2, "dp": 2}, {}),
    ({"dp": 2, "tp": 2}, {"embed.weight": Shard(0)}),
    ({"dp": 3, "tp": 2}, {"embed.weight": Shard(0)}),
    ({"dp": 2, "tp": 3}, {"embed.weight": Shard(1)}),
    ({"dp": 2, "tp": 2}, {"embed.weight": Replicate()}),
    ({"replica": 2, "dp": 2, "tp": 2}, {"embed.weight": Shard(0)}),
]


def sharded(rank: int, mesh: DeviceMesh, over_tp: Mapping[str, Placement], rows: int) -> nn.Module:
    model = Toy(rows)
    shard(model, mesh, dict(over_tp))
    if over_tp:
        model.head.weight = model.embed.weight
    return model


def by_name(declaration: Declaration) -> dict[str, BufferRecord]:
    return {record.name: record for record in declaration.buffers}


@pytest.mark.parametrize("rows", [10, 7, 3])
@pytest.mark.parametrize(("shape", "over_tp"), MESHES)
def test_every_piece_is_where_it_is_declared(
    shape: dict[str, int], over_tp: Mapping[str, Placement], rows: int
) -> None:
    whole = dense(rows)
    size = int(torch.Size(shape.values()).numel())

    def check(rank: int, mesh: DeviceMesh) -> set[tuple[str, Ints]]:
        model = sharded(rank, mesh, over_tp, rows)
        declared = fsdp_declaration(model, rank=rank, world_size=size, axes=mesh_axes(mesh))
        return {at for record in declared.buffers for at in elements(model, record, whole)}

    everywhere = set[tuple[str, Ints]]().union(*on_all_ranks(shape, check))
    expected = {"embed.weight", "norm.weight", "norm.bias", "correction_bias"}
    assert {name for name, _ in everywhere} == expected
    assert len(everywhere) == sum(whole[name].numel() for name in expected)


def elements(
    model: nn.Module, record: BufferRecord, whole: Mapping[str, Tensor]
) -> set[tuple[str, Ints]]:
    """Compare a buffer's pieces with the whole tensors; return which elements it holds."""
    tensor = live_tensors(model)[record.name].tensor
    assert (tuple(tensor.shape), tensor.dtype) == (record.shape, torch.float32)
    held: set[tuple[str, Ints]] = set()
    for piece in record.pieces:
        ends = zip(piece.start, piece.extent, strict=True)
        box = whole[piece.tensor][tuple(slice(a, a + n) for a, n in ends)]
        first = tensor.storage_offset() + piece.offset
        assert torch.equal(tensor.as_strided(piece.extent, piece.strides, first), box)
        places = torch.ones(box.shape).nonzero() + torch.tensor(piece.start)
        held |= {(piece.tensor, tuple(map(int, place))) for place in places}
    return held


def test_roles_follow_from_the_module() -> None:
    with fake_rank(1, 3):
        model = sharded(1, mesh_of(1, {"dp": 3}), {}, ROWS)
        declared = fsdp_declaration(model, rank=1, world_size=3)
    found = by_name(declared)
    assert {name: (record.kind, record.role.kind) for name, record in found.items()} == {
        "embed.weight": (Kind.PARAMETER, "transfer"),
        "head.weight": (Kind.PARAMETER, "alias"),
        "norm.weight": (Kind.PARAMETER, "transfer"),
        "norm.bias": (Kind.PARAMETER, "transfer"),
        "correction_bias": (Kind.BUFFER, "transfer"),
        "inv_freq": (Kind.BUFFER, "constant"),
    }
    assert found["head.weight"].role.of == "embed.weight"
    assert found["inv_freq"].role.reason
    assert declared.tensors == (
        TensorRecord("correction_bias", (4,)),
        TensorRecord("embed.weight", (ROWS, 6)),
        TensorRecord("head.weight", (ROWS, 6), tied_to="embed.weight"),
        TensorRecord("norm.bias", (2,)),
        TensorRecord("norm.weight", (2,)),
    )
    assert (declared.side, declared.ranks, declared.world_size) == (Side.SENDER, (1,), 3)


def test_a_rank_behind_the_end_of_a_parameter_holds_no_piece() -> None:
    with fake_rank(2, 3):
        model = sharded(2, mesh_of(2, {"dp": 3}), {}, ROWS)
        record = by_name(fsdp_declaration(model, rank=2, world_size=3))["norm.weight"]
    assert (record.shape, record.strides, record.pieces) == ((0,), (1,), ())


def test_tensors_go_by_their_checkpoint_names() -> None:
    names = {"embed.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
    with fake_rank(0, 2):
        model = sharded(0, mesh_of(0, {"dp": 2}), {}, ROWS)
        declared = fsdp_declaration(model, rank=0, world_size=2, names=names)
    assert (
        TensorRecord("lm_head.weight", (ROWS, 6), "model.embed_tokens.weight") in declared.tensors
    )
    (piece,) = by_name(declared)["embed.weight"].pieces
    assert piece.tensor == "model.embed_tokens.weight"


def refused(model: nn.Module, names: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(DiagnosticError) as caught:
        fsdp_declaration(model, rank=0, world_size=2, names=names)
    codes = [diagnostic.code for diagnostic in caught.value.diagnostics]
    assert set(codes) <= set(known_codes())
    return codes


def test_names_that_are_nobodys_are_refused() -> None:
    assert refused(Toy(), {"embed.weigth": "a", "norm.weight": "b"}) == ["TS820"]


def test_what_cannot_be_declared_is_refused_together() -> None:
    with fake_rank(0, 2):
        mesh = mesh_of(0, {"dp": 2})
        model = nn.Module()
        local = torch.zeros(2, 3)
        for name, tensor in {
            "sum": DTensor.from_local(local, mesh, [Partial()]),
            "short": DTensor.from_local(
                local, mesh, [Shard(0)], shape=torch.Size((9, 3)), stride=(3, 1)
            ),
            "phases": torch.zeros(2, dtype=torch.complex64),
        }.items():
            model.register_buffer(name, tensor)
        assert refused(model) == ["TS821", "TS822", "TS823"]


def test_placements_that_leave_rows_apart_are_refused() -> None:
    with fake_rank(0, 2):
        spread = DTensor.from_local(
            torch.zeros(4, 3), mesh_of(0, {"dp": 2}), [_StridedShard(0, split_factor=2)]
        )
        model = nn.Module()
        model.register_buffer("spread", spread)
        assert refused(model) == ["TS821"]


def test_a_rank_outside_of_the_mesh_is_refused() -> None:
    with fake_rank(2, 3):
        elsewhere = DeviceMesh("cpu", [0, 1], mesh_dim_names=("elsewhere",))
        model = nn.Module()
        model.register_buffer("far", DTensor.from_local(torch.zeros(4), elsewhere, [Shard(0)]))
        assert refused(model) == ["TS821"]


def test_meshes_become_axes() -> None:
    with fake_rank(0, 12):
        mesh = mesh_of(0, {"dp": 3, "tp": 4})
        axes = (Axis(name="dp_0", size=3, stride=4), Axis(name="tp_0", size=4, stride=1))
        assert mesh_axes(mesh) == axes
        assert mesh_axes(mesh["tp_0"]) == axes[1:]
        with pytest.raises(ValueError, match="no coordinate"):
            mesh_axes(DeviceMesh("cpu", [0, 1, 4], mesh_dim_names=("dp",)))


def engine() -> Manifest:
    """Two ranks that hold half of the embedding's columns each, and all of the rest."""
    sizes = {"correction_bias": 4, "norm.bias": 2, "norm.weight": 2}
    half = Piece(tensor="embed.weight", start=(0, "tp * 3"), extent=(ROWS, 3))
    head = Alias(kind="alias", of="embed.weight")
    return Manifest(
        format="tranship.manifest/1",
        side=Side.RECEIVER,
        world_size=2,
        axes=(Axis(name="tp", size=2, stride=1),),
        tensors=(
            TensorFamily(name="embed.weight", shape=(ROWS, 6)),
            *(TensorFamily(name=name, shape=(size,)) for name, size in sizes.items()),
        ),
        buffers=(
            BufferFamily(name="embed.weight", dtype=DType.F32, shape=(ROWS, 3), pieces=(half,)),
            BufferFamily(name="head.weight", dtype=DType.F32, shape=(ROWS, 3), role=head),
            *(
                BufferFamily(
                    name=name,
                    dtype=DType.F32,
                    shape=(size,),
                    pieces=(Piece(tensor=name, start=(0,), extent=(size,)),),
                )
                for name, size in sizes.items()
            ),
        ),
    )


def test_declared_ranks_merge_bind_and_deliver() -> None:
    axes = (Axis(name="dp", size=2, stride=2), Axis(name="tp", size=2, stride=1))

    def build(rank: int, mesh: DeviceMesh) -> tuple[nn.Module, Manifest]:
        model = sharded(rank, mesh, {"embed.weight": Shard(0)}, ROWS)
        return model, fold(fsdp_declaration(model, rank=rank, world_size=4, axes=axes))

    built = on_all_ranks({"dp": 2, "tp": 2}, build)
    trainer = merge([(f"rank{rank}.json", manifest) for rank, (_, manifest) in enumerate(built)])
    assert check_manifest(trainer) == ()
    plan = compile_transfer(trainer, engine())
    engines = [model_of(engine(), rank) for rank in range(2)]
    senders, receivers = connect_locally(World(senders=4, receivers=2), timeout=30)
    calls: list[Callable[[], StepStats]] = [
        partial(Sender.bind(plan, trainer, live_tensors(model), end, rank).publish, 1)
        for rank, ((model, _), end) in enumerate(zip(built, senders, strict=True))
    ]
    calls += [
        partial(Receiver.bind(plan, engine(), live_tensors(model), end, rank).receive, 1)
        for rank, (model, end) in enumerate(zip(engines, receivers, strict=True))
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        steps = [pool.submit(call) for call in calls]
    assert [step.result().version for step in steps] == [1] * 6
    for rank, model in enumerate(engines):
        for name, live in live_tensors(model).items():
            whole = dense()[name]
            part = whole[:, rank * 3 : rank * 3 + 3] if whole.dim() == 2 else whole
            assert torch.equal(live.tensor, part)

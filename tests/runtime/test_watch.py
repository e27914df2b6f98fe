"""What was bound is seen to be untouched, and whatever replaces a tensor is noticed."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from tests.runtime.fake_ranks import fake_rank, mesh_of
from tests.runtime.live_models import model_of
from tranship.runtime.bind import bind, find_moved
from tranship.runtime.live import live_tensors, watch
from tranship.schema.dtypes import DType
from tranship.schema.manifest import BufferFamily, Kind, Manifest, Piece, Side, TensorFamily

WEIGHT, BIAS, ABSORBED = "layers.gate.weight", "layers.gate.bias", "layers.absorbed"
KINDS = {WEIGHT: Kind.PARAMETER, BIAS: Kind.BUFFER, ABSORBED: Kind.ATTRIBUTE}


def manifest() -> Manifest:
    """A parameter, a buffer and a plain attribute, all square."""
    return Manifest(
        format="tranship.manifest/1",
        side=Side.SENDER,
        world_size=1,
        tensors=tuple(TensorFamily(name=name, shape=(4, 4)) for name in KINDS),
        buffers=tuple(
            BufferFamily(
                name=name,
                dtype=DType.F32,
                shape=(4, 4),
                kind=kind,
                pieces=(Piece(tensor=name, start=(0, 0), extent=(4, 4)),),
            )
            for name, kind in KINDS.items()
        ),
    )


def replace_parameter(model: nn.Module) -> None:
    weight = model.get_parameter(WEIGHT)
    model.get_submodule("layers.gate").register_parameter(
        "weight", nn.Parameter(weight.detach().clone())
    )


def point_parameter_elsewhere(model: nn.Module) -> None:
    weight = model.get_parameter(WEIGHT)
    weight.data = weight.data.clone()


def transpose_parameter(model: nn.Module) -> None:
    weight = model.get_parameter(WEIGHT)
    address = weight.data_ptr()
    weight.data = weight.data.t()
    assert weight.data_ptr() == address


def cut_parameter(model: nn.Module) -> None:
    weight = model.get_parameter(WEIGHT)
    weight.data = weight.data[:2]


def reinterpret_parameter(model: nn.Module) -> None:
    weight = model.get_parameter(WEIGHT)
    weight.data = torch.as_strided(weight.data.view(torch.bfloat16), (4, 4), (4, 1))


def replace_module(model: nn.Module) -> None:
    layers = model.get_submodule("layers")
    layers.add_module("gate", deepcopy(layers.get_submodule("gate")))


def replace_outer_module(model: nn.Module) -> None:
    model.add_module("layers", deepcopy(model.get_submodule("layers")))


def replace_buffer(model: nn.Module) -> None:
    model.get_submodule("layers.gate").register_buffer("bias", torch.zeros(4, 4))


def replace_attribute(model: nn.Module) -> None:
    setattr(model.get_submodule("layers"), "absorbed", torch.zeros(4, 4))  # noqa: B010 -- no field


def remove_attribute(model: nn.Module) -> None:
    delattr(model.get_submodule("layers"), "absorbed")


CHANGES: list[tuple[Callable[[nn.Module], None], set[str]]] = [
    (replace_parameter, {WEIGHT}),
    (point_parameter_elsewhere, {WEIGHT}),
    (transpose_parameter, {WEIGHT}),
    (cut_parameter, {WEIGHT}),
    (reinterpret_parameter, {WEIGHT}),
    (replace_module, {WEIGHT, BIAS}),
    (replace_outer_module, {WEIGHT, BIAS, ABSORBED}),
    (replace_buffer, {BIAS}),
    (replace_attribute, {ABSORBED}),
    (remove_attribute, {ABSORBED}),
]


def write_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for live in live_tensors(model).values():
            live.tensor.normal_()


def add_another(model: nn.Module) -> None:
    setattr(model.get_submodule("layers"), "more", torch.zeros(1))  # noqa: B010 -- no field


def leave_alone(model: nn.Module) -> None:
    assert len(list(model.modules())) == 3


@pytest.mark.parametrize("touch", [leave_alone, write_in_place, add_another])
def test_what_leaves_tensors_in_place_is_no_change(touch: Callable[[nn.Module], None]) -> None:
    model = model_of(manifest(), 0)
    bound = bind(live_tensors(model), manifest(), Side.SENDER, 0)
    for _ in range(2):
        touch(model)
        assert bound.watch.unchanged()
        assert find_moved(bound) == ()


@pytest.mark.parametrize(("change", "names"), CHANGES)
def test_whatever_replaces_a_tensor_is_noticed(
    change: Callable[[nn.Module], None], names: set[str]
) -> None:
    model = model_of(manifest(), 0)
    bound = bind(live_tensors(model), manifest(), Side.SENDER, 0)
    change(model)
    assert not bound.watch.unchanged()
    moved = find_moved(bound)
    assert {finding.code for finding in moved} == {"TS810"}
    assert {name for name in KINDS for item in moved if repr(name) in item.message} == names
    assert len(moved) == len(names)


def test_another_object_of_the_same_memory_has_not_moved() -> None:
    model = model_of(manifest(), 0)
    bound = bind(live_tensors(model), manifest(), Side.SENDER, 0)
    same = nn.Parameter(model.get_parameter(WEIGHT).detach(), requires_grad=False)
    model.get_submodule("layers.gate").register_parameter("weight", same)
    assert not bound.watch.unchanged()
    assert find_moved(bound) == ()


def replace_whole(model: nn.Module, other: DTensor) -> None:
    model.register_parameter("weight", nn.Parameter(other))


def replace_local(model: nn.Module, other: DTensor) -> None:
    held = model.get_parameter("weight")
    assert isinstance(held, DTensor)
    held._local_tensor = other.to_local()  # pyright: ignore[reportPrivateUsage] -- as FSDP2 does


def point_local_elsewhere(model: nn.Module, other: DTensor) -> None:
    held = model.get_parameter("weight")
    assert isinstance(held, DTensor)
    local: Tensor = held._local_tensor  # pyright: ignore[reportPrivateUsage] -- what is watched
    local.data = other.to_local()


@pytest.mark.parametrize("change", [replace_whole, replace_local, point_local_elsewhere])
def test_of_a_distributed_tensor_this_ranks_part_is_watched(
    change: Callable[[nn.Module, DTensor], None],
) -> None:
    with fake_rank(0, 2):
        mesh = mesh_of(0, {"dp": 2})
        model = nn.Module()
        one, two = (DTensor.from_local(torch.zeros(2, 3), mesh, [Shard(0)]) for _ in "12")
        model.register_parameter("weight", nn.Parameter(one))
        found = watch(live_tensors(model).values())
        assert found.unchanged()
        change(model, two)
        assert not found.unchanged()

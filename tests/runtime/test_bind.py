"""Binding compares a live model with its manifest; every kind of difference has its code."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.runtime.live_models import model_of, place
from tranship.runtime.bind import bind, find_moved
from tranship.runtime.live import live_tensors
from tranship.runtime.overlap import shared, within
from tranship.schema.diagnostics import DiagnosticError, known_codes
from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    Alias,
    BufferFamily,
    ConstantBuffer,
    Derived,
    Kind,
    Manifest,
    Piece,
    Side,
    TensorFamily,
)

EMBED, HEAD, BIAS = "model.embed.weight", "model.head.weight", "model.gate.bias"
ROTARY, ABSORBED = "model.rotary.inv_freq", "model.attention.w_kc"


def manifest(side: Side = Side.RECEIVER, ranks: str | None = None) -> Manifest:
    """An embedding with a tied head, a routing bias, a constant and a derived attribute."""
    embed = Piece(tensor=EMBED, start=(0, 0), extent=(8, 4))
    bias = Piece(tensor=BIAS, start=(0,), extent=(4,))
    return Manifest(
        format="tranship.manifest/1",
        side=side,
        world_size=2,
        ranks=ranks,
        tensors=(TensorFamily(name=EMBED, shape=(8, 4)), TensorFamily(name=BIAS, shape=(4,))),
        buffers=(
            BufferFamily(name=EMBED, dtype=DType.BF16, shape=(8, 4), pieces=(embed,)),
            BufferFamily(
                name=HEAD, dtype=DType.BF16, shape=(8, 4), role=Alias(kind="alias", of=EMBED)
            ),
            BufferFamily(name=BIAS, dtype=DType.F32, shape=(4,), kind=Kind.BUFFER, pieces=(bias,)),
            BufferFamily(
                name=ROTARY,
                dtype=DType.F32,
                shape=(16,),
                kind=Kind.BUFFER,
                role=ConstantBuffer(kind="constant", reason="computed from the configuration"),
            ),
            BufferFamily(
                name=ABSORBED,
                dtype=DType.BF16,
                shape=(4, 8),
                strides=(1, 4),
                kind=Kind.ATTRIBUTE,
                role=Derived(kind="derived", recipe="absorb", inputs=(EMBED,)),
            ),
        ),
    )


def codes(model: nn.Module, declared: Manifest | None = None) -> list[str]:
    """Bind rank 1 of `model`; return the codes of what is wrong."""
    declared = declared or manifest()
    try:
        bind(live_tensors(model), declared, declared.side, 1)
    except DiagnosticError as error:
        return sorted(diagnostic.code for diagnostic in error.diagnostics)
    return []


def put(name: str, kind: Kind, tensor: torch.Tensor) -> Callable[[nn.Module], None]:
    return lambda model: place(model, name, kind, tensor)


def unregister(name: str) -> Callable[[nn.Module], None]:
    module, _, key = name.rpartition(".")
    return lambda model: delattr(model.get_submodule(module), key)


def test_a_model_as_declared_is_bound_whole() -> None:
    model = model_of(manifest(), 1)
    bound = bind(live_tensors(model), manifest(), Side.RECEIVER, 1)
    assert set(bound.tensors) == {EMBED, HEAD, BIAS, ROTARY, ABSORBED}
    bound.tensors[EMBED].fill_(3.0)
    assert torch.equal(model.get_parameter(HEAD), torch.full((8, 4), 3.0, dtype=torch.bfloat16))
    assert find_moved(bound) == ()


SPARSE = torch.zeros(4).to_sparse()


class Wrapper(torch.Tensor):
    """A tensor subclass without memory of its own, as quantization libraries make them."""

    @staticmethod
    def __new__(cls: "type[Wrapper]") -> "Wrapper":
        make: Any = torch.Tensor._make_wrapper_subclass
        return make(cls, (4,))

    @classmethod
    def __torch_dispatch__(cls, *_: object) -> torch.Tensor:
        return cls()


DIFFERENCES = [
    pytest.param(unregister(BIAS), ["TS800"], id="missing"),
    pytest.param(put("model.extra", Kind.PARAMETER, torch.zeros(1)), ["TS801"], id="parameter"),
    pytest.param(put("model.gate.extra", Kind.BUFFER, torch.zeros(1)), ["TS801"], id="buffer"),
    pytest.param(put("model.extra", Kind.ATTRIBUTE, torch.zeros(1)), ["TS801"], id="attribute"),
    pytest.param(put(BIAS, Kind.PARAMETER, torch.zeros(4)), ["TS802"], id="kind"),
    pytest.param(put(BIAS, Kind.BUFFER, torch.zeros(4).bfloat16()), ["TS803"], id="dtype"),
    pytest.param(put(BIAS, Kind.BUFFER, torch.zeros(2, 2)), ["TS804"], id="shape"),
    pytest.param(
        put(ABSORBED, Kind.ATTRIBUTE, torch.zeros(4, 8).bfloat16()), ["TS805"], id="strides"
    ),
    pytest.param(put(HEAD, Kind.PARAMETER, torch.zeros(8, 4).bfloat16()), ["TS808"], id="untied"),
    pytest.param(put(BIAS, Kind.BUFFER, torch.zeros(4, device="meta")), ["TS809"], id="meta"),
    pytest.param(put(BIAS, Kind.BUFFER, SPARSE), ["TS809"], id="sparse"),
    pytest.param(put(BIAS, Kind.BUFFER, Wrapper()), ["TS809"], id="wrapper"),
]


@pytest.mark.parametrize(("change", "expected"), DIFFERENCES)
def test_every_difference_has_its_code(
    change: Callable[[nn.Module], None], expected: list[str]
) -> None:
    model = model_of(manifest(), 1)
    change(model)
    assert codes(model) == expected


def test_all_differences_are_reported_together() -> None:
    model = model_of(manifest(), 1)
    put(BIAS, Kind.PARAMETER, torch.zeros(3, dtype=torch.float64))(model)
    unregister(ROTARY)(model)
    put("model.rotary.inv_frq", Kind.BUFFER, torch.zeros(16))(model)
    assert codes(model) == ["TS800", "TS801", "TS802", "TS803", "TS804"]


def test_missing_and_extra_names_point_at_each_other() -> None:
    model = model_of(manifest(), 1)
    unregister(ROTARY)(model)
    put("model.rotary.inv_frq", Kind.BUFFER, torch.zeros(16))(model)
    with pytest.raises(DiagnosticError) as caught:
        bind(live_tensors(model), manifest(), Side.RECEIVER, 1)
    missing, extra = caught.value.diagnostics
    assert missing.help == "the model has 'model.rotary.inv_frq'"
    assert extra.help == f"declared are '{ROTARY}'"
    assert str(caught.value).startswith("receiver rank 1: TS800: ")
    assert {missing.code, extra.code} <= set(known_codes())


def test_a_sender_may_hold_what_is_not_declared() -> None:
    declared = manifest(Side.SENDER)
    model = model_of(declared, 1)
    put("model.extra", Kind.PARAMETER, torch.zeros(1))(model)
    assert codes(model, declared) == []


def test_undeclared_sharing_is_found_through_views() -> None:
    flat = torch.zeros(20)
    model = model_of(manifest(), 1)
    put(BIAS, Kind.BUFFER, flat[:4])(model)
    put(ROTARY, Kind.BUFFER, flat[3:19])(model)
    assert codes(model) == ["TS807"]
    put(ROTARY, Kind.BUFFER, flat[4:])(model)
    assert codes(model) == []


def test_an_alias_may_be_a_part_of_its_buffer() -> None:
    declared = manifest()
    part = BufferFamily(
        name="model.first", dtype=DType.BF16, shape=(4,), role=Alias(kind="alias", of=HEAD)
    )
    declared = declared.model_copy(update={"buffers": (*declared.buffers, part)})
    model = model_of(manifest(), 1)
    put("model.first", Kind.PARAMETER, model.get_parameter(EMBED).data[2])(model)
    assert codes(model, declared) == []


def test_dims_of_one_element_may_have_any_stride() -> None:
    declared = manifest()
    row = declared.buffers[2].model_copy(update={"shape": (1, 4)})
    buffers = (*declared.buffers[:2], row, *declared.buffers[3:])
    declared = declared.model_copy(update={"buffers": buffers})
    model = model_of(manifest(), 1)
    put(BIAS, Kind.BUFFER, torch.zeros(4).as_strided((1, 4), (77, 1)))(model)
    assert codes(model, declared) == []


def test_transferred_buffers_lie_on_one_device_and_constants_anywhere() -> None:
    model = model_of(manifest(), 1)
    with pytest.raises(DiagnosticError) as caught:
        bind(live_tensors(model), manifest(), Side.RECEIVER, 1, torch.device("cuda", 0))
    found = [(d.code, d.message.split("'")[1]) for d in caught.value.diagnostics]
    assert sorted(found) == [("TS806", ABSORBED), ("TS806", EMBED), ("TS806", BIAS)]


@pytest.mark.parametrize(("side", "rank"), [(Side.SENDER, 1), (Side.RECEIVER, 0)])
def test_a_manifest_of_others_is_refused(side: Side, rank: int) -> None:
    with pytest.raises(DiagnosticError) as caught:
        bind({}, manifest(ranks="1"), side, rank)
    assert [diagnostic.code for diagnostic in caught.value.diagnostics] == ["TS812"]


def replace_module(model: nn.Module) -> None:
    model.get_submodule("model").add_module("gate", nn.Module())


MOVES = [
    pytest.param(put(BIAS, Kind.BUFFER, SPARSE), BIAS, id="sparse"),
    pytest.param(put(BIAS, Kind.BUFFER, torch.zeros(4)), BIAS, id="rebound"),
    pytest.param(put(ABSORBED, Kind.ATTRIBUTE, torch.zeros(4, 8)), ABSORBED, id="attribute"),
    pytest.param(unregister(ROTARY), ROTARY, id="removed"),
    pytest.param(replace_module, BIAS, id="module"),
]


@pytest.mark.parametrize(("change", "name"), MOVES)
def test_what_is_replaced_after_binding_is_found(
    change: Callable[[nn.Module], None], name: str
) -> None:
    model = model_of(manifest(), 1)
    bound = bind(live_tensors(model), manifest(), Side.RECEIVER, 1)
    change(model)
    assert [(d.code, d.message.split("'")[1]) for d in find_moved(bound)] == [("TS810", name)]


def test_new_memory_under_the_same_parameter_is_found() -> None:
    model = model_of(manifest(), 1)
    bound = bind(live_tensors(model), manifest(), Side.RECEIVER, 1)
    weight = model.get_parameter(EMBED)
    weight.data = weight.data.clone()
    assert {d.message.split("'")[1] for d in find_moved(bound)} == {EMBED}


def test_only_tensors_with_a_byte_in_common_share_memory() -> None:
    flat = torch.zeros(6, 8)
    views = {"left": flat[:, :3], "right": flat[:, 3:], "middle": flat[2:4, 2:4], "empty": flat[:0]}
    assert {frozenset(pair) for pair in shared(views)} == {
        frozenset({"left", "middle"}),
        frozenset({"right", "middle"}),
    }


def test_nothing_lies_within_an_empty_tensor_but_the_empty_one() -> None:
    flat = torch.zeros(8)
    assert within(flat[2:4], flat[2:5])
    assert not within(flat[2:4], flat[3:5])
    assert within(flat[:0], flat[4:])
    assert not within(flat[:1], flat[:0])


def test_a_model_without_tensors_lacks_all_that_is_declared() -> None:
    assert codes(nn.Module()) == ["TS800"] * 5


def test_tensors_held_twice_have_two_names() -> None:
    model = nn.Module()
    model.register_parameter("a", nn.Parameter(torch.zeros(2)))
    model.add_module("inner", nn.Module())
    model.get_submodule("inner").register_parameter("b", model.get_parameter("a"))
    model.add_module("again", model.get_submodule("inner"))
    assert sorted(live_tensors(model)) == ["a", "again.b", "inner.b"]

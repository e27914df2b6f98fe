"""What a model derives stays where it was bound, also if the model makes new tensors of it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tranship.runtime.frameworks.sglang.recipes import PostLoad, find_recipes


class Norm(nn.Module):
    """Derives in place, as SGLang's GemmaRMSNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.register_buffer("more", torch.zeros(4))

    def refresh(self) -> None:
        self.get_buffer("more").copy_(self.weight + 1)


class Model(nn.Module):
    """Derives new tensors, as latent attention in FP8 does, one of them of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()
        self.largest, self.wide = torch.tensor(0.0), torch.zeros(1)
        self.whole, self.gone = torch.zeros(1), torch.zeros(1)
        self.calls = 0

    def post_load_weights(self) -> None:
        self.calls += 1
        self.largest = self.norm.get_buffer("more").amax()
        self.wide = torch.zeros(1 + self.calls)
        self.whole = torch.ones(1, dtype=torch.int32)
        vars(self)["gone"] = None


NAMES = ["Model.post_load_weights", "Norm.refresh"]


def step(model: Model, value: float, buffers: list[tuple[str, Tensor]]) -> None:
    """Write a weight, and run recipes in this order."""
    post_load: Any = vars(model).setdefault("post_load", PostLoad(model))
    recipes = find_recipes(NAMES, model, post_load)
    model.norm.weight.fill_(value)
    post_load.begin()
    for name, buffer in buffers:
        recipes[name](buffer)
    post_load()


def test_the_bound_tensor_gets_the_value_of_the_new_one() -> None:
    model = Model()
    bound = model.largest
    for value in (2.0, 5.0):
        step(model, value, [(NAMES[1], model.norm.get_buffer("more")), (NAMES[0], bound)])
        assert model.largest is bound
        assert bound.item() == value + 1


def test_it_does_so_as_often_as_the_model_computes() -> None:
    model = Model()
    bound = model.largest
    step(model, 2.0, [(NAMES[0], bound), (NAMES[1], model.norm.get_buffer("more"))])
    assert model.calls == 2
    assert model.largest is bound
    assert bound.item() == 3.0


@pytest.mark.parametrize("name", ["wide", "whole", "gone"])
def test_what_is_no_such_tensor_any_more_is_left_to_the_session_to_refuse(name: str) -> None:
    model = Model()
    bound = vars(model)[name]
    step(model, 2.0, [(NAMES[0], bound)])
    assert vars(model)[name] is not bound
    assert bound.tolist() == [0.0]


@pytest.mark.parametrize("model", [Model(), Norm()])
def test_recipes_that_a_model_does_not_have_are_not_found(model: nn.Module) -> None:
    others = ["Other.post_load_weights", "Other.refresh", "Norm.post_load_weights", "Model.refresh"]
    assert find_recipes(others, model, PostLoad(model)) == {}

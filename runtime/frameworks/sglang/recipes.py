"""How an engine recomputes what it derives from its weights: the recipes of a plan."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tranship.runtime.execute import Recipe
from tranship.runtime.frameworks.attributes import find_attributes
from tranship.runtime.live import held_tensors, submodules

POST_LOAD = "post_load_weights"
"""What SGLang calls the method by which a model recomputes what it derives from weights."""


class PostLoad:
    """Recomputes what a model derives from its weights, once in a step, whoever asks first.

    Where SGLang makes a new tensor of it (`w_scale` of latent attention in FP8, but not on CUDA:
    models/deepseek_common/deepseek_weight_loader.py), the tensor that was bound is kept.
    """

    def __init__(self, model: Any) -> None:
        self._call = getattr(model, POST_LOAD, None)
        self._done = False
        self._places = find_attributes(model)
        self._derived: set[int] = set()

    def begin(self) -> None:
        """Begin a step."""
        self._done = False

    def __call__(self, buffer: Tensor | None = None, *_: Tensor) -> None:
        """Recompute everything, in place; as a recipe it is called for each derived buffer."""
        if not self._done and self._call is not None:
            # Before the call: what has failed once in a step is not tried again.
            self._done = True
            self._call()
            self._put_back(self._derived)
        if buffer is not None:
            self._derived.add(buffer.data_ptr())
            self._put_back([buffer.data_ptr()])

    def _put_back(self, addresses: Iterable[int]) -> None:
        for address in addresses:
            for place in self._places.get(address, ()):
                place.put_back()


@dataclass(frozen=True, slots=True)
class OwnMethod:
    """Recomputes a buffer by a method of the module that holds it; by the buffers' addresses."""

    methods: Mapping[int, Callable[[], object]]
    post_load: PostLoad

    def __call__(self, buffer: Tensor, *_: Tensor) -> None:
        """Recompute `buffer` in place."""
        self.methods[buffer.data_ptr()]()
        # What the model made of this buffer before is out of date.
        self.post_load.begin()


def find_recipes(names: Iterable[str], model: nn.Module, post_load: PostLoad) -> dict[str, Recipe]:
    """Return those of the recipes, `Class.method` as a trace names them, that a model has."""
    found: dict[str, Recipe] = {}
    for name in set(names):
        kind, _, method = name.rpartition(".")
        if method == POST_LOAD and kind in _kinds(model) and hasattr(model, method):
            found[name] = post_load
        elif methods := _methods(model, kind, method):
            found[name] = OwnMethod(methods, post_load)
    return found


def _kinds(owner: nn.Module) -> set[str]:
    """Return the names of a module's class and of those that it derives from."""
    return {base.__qualname__ for base in type(owner).__mro__}


def _methods(model: nn.Module, kind: str, method: str) -> dict[int, Callable[[], object]]:
    return {
        tensor.data_ptr(): getattr(owner, method)
        for _, owner in submodules(model)
        if kind in _kinds(owner) and hasattr(owner, method)
        for _, _, tensor in held_tensors(owner)
    }

"""Record what a model makes of its tensors once they are loaded, and of which of them."""

from collections.abc import Callable, Container, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tranship.runtime.frameworks.tracing.operations import (
    changed_tensors,
    named_arguments,
    tensors_in,
)
from tranship.runtime.frameworks.tracing.tracer import TraceError, aliases, places
from tranship.runtime.live import live_tensors
from tranship.schema.records import RoleRecord

UNRELATED = "made after loading, of nothing that is loaded"


_FOREIGN = frozenset({""})
"""Where a tensor comes from that is none of the model's, and was there before."""


class Lineage(TorchDispatchMode):
    """While active, notes for every tensor which of the `buffers` its values come from.

    Raises:
        TraceError: from the operation at fault, if a buffer of `loaded` is changed, or another one
            is made of buffers; it may be set to a constant.
    """

    def __init__(self, buffers: Mapping[str, torch.Tensor], loaded: Container[str]) -> None:
        super().__init__()
        self._loaded = loaded
        self._names = {tensor.untyped_storage(): name for name, tensor in buffers.items()}
        self._origins = {storage: frozenset((name,)) for storage, name in self._names.items()}

    def of(self, tensor: torch.Tensor) -> frozenset[str]:
        """Return the names of the buffers that a tensor was made of."""
        return self._origins.get(tensor.untyped_storage(), _FOREIGN)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        named = named_arguments(func, args, kwargs)
        origins = frozenset[str]().union(*map(self.of, tensors_in(named.values())))
        for tensor in changed_tensors(func, named):
            self._change(tensor, func._schema.name, origins)
        for tensor in tensors_in([result]):
            self._origins.setdefault(tensor.untyped_storage(), origins)
        return result

    def _change(self, tensor: torch.Tensor, operation: str, origins: frozenset[str]) -> None:
        storage = tensor.untyped_storage()
        name = self._names.get(storage)
        if name is not None and (name in self._loaded or origins - {name}):
            raise TraceError(f"{operation} changes {name} after loading")
        self._origins[storage] = self.of(tensor) | origins


@contextmanager
def without_method(model: Any, name: str) -> Generator[None]:
    """Let a method of a model do nothing meanwhile, if there is one."""
    if not hasattr(model, name):
        yield
        return
    setattr(model, name, _do_nothing)
    try:
        yield
    finally:
        delattr(model, name)


def _do_nothing(*_: object, **__: object) -> None:
    """Stand in for a method."""


@dataclass(frozen=True, slots=True)
class Derivation:
    """What makes tensors of those that were loaded: a call, and what it is as a recipe."""

    recipe: str
    make: Callable[[], object]


def method_of_model(name: str) -> Callable[[Any], tuple[Derivation, ...]]:
    """Return what finds a method of a model that derives all there is to derive."""

    def find(model: Any) -> tuple[Derivation, ...]:
        method = getattr(model, name, None)
        return () if method is None else (Derivation(method.__qualname__, method),)

    return find


def trace_derived(
    model: Any, derivations: Iterable[Derivation], loaded: Container[str]
) -> dict[str, RoleRecord]:
    """Make what a model makes of the tensors that were loaded.

    Args:
        model: The model, on the meta device.
        derivations: What makes them, in order.
        loaded: Names of the tensors that were loaded.

    Returns:
        The roles of the tensors that it has then and had not before, by name.

    Raises:
        TraceError: one changes what was loaded.
    """
    first = live_tensors(model)
    roles: dict[str, RoleRecord] = {}
    buffers = {name: first[name].tensor for name in set(aliases(first).values())}
    with Lineage(buffers, loaded) as lineage:
        for derivation in derivations:
            before = live_tensors(model)
            derivation.make()
            after = live_tensors(model)
            moved = {name for name, _ in places(before) - places(after) if name in loaded}
            if moved:
                names = ", ".join(sorted(moved))
                raise TraceError(f"what follows loading gives other memory to {names}")
            for name in after.keys() - before.keys():
                roles[name] = _role(name, derivation.recipe, lineage.of(after[name].tensor))
    return roles


def _role(name: str, recipe: str, inputs: frozenset[str]) -> RoleRecord:
    if inputs & _FOREIGN:
        raise TraceError(f"{name} is made of a tensor that the model does not name")
    if not inputs:
        return RoleRecord(kind="constant", reason=UNRELATED)
    return RoleRecord(kind="derived", recipe=recipe, inputs=tuple(sorted(inputs)))

"""Record what a model makes of its tensors once they are loaded, and of which of them."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
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
        TraceError: from the operation at fault, if a buffer is changed.
    """

    def __init__(self, buffers: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
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
        if storage in self._names:
            raise TraceError(f"{operation} changes {self._names[storage]} after loading")
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


def trace_derived(model: Any, name: str) -> dict[str, RoleRecord]:
    """Call the method by which a model makes tensors of those that were loaded, if it has one.

    Args:
        model: The model, on the meta device.
        name: The method, which is the recipe where it has to be done again.

    Returns:
        The roles of the tensors that it has then and had not before, by name.

    Raises:
        TraceError: it changes what was loaded.
    """
    method = getattr(model, name, None)
    if method is None:
        return {}
    before = live_tensors(model)
    originals = set(aliases(before).values())
    with Lineage({name: before[name].tensor for name in originals}) as lineage:
        method()
    after = live_tensors(model)
    if moved := places(before) - places(after):
        names = ", ".join(sorted({name for name, _ in moved}))
        raise TraceError(f"what follows loading gives other memory to {names}")
    return {
        name: _role(name, method.__qualname__, lineage.of(held.tensor))
        for name, held in after.items()
        if name not in before
    }


def _role(name: str, recipe: str, inputs: frozenset[str]) -> RoleRecord:
    if inputs & _FOREIGN:
        raise TraceError(f"{name} is made of a tensor that the model does not name")
    if not inputs:
        return RoleRecord(kind="constant", reason=UNRELATED)
    return RoleRecord(kind="derived", recipe=recipe, inputs=tuple(sorted(inputs)))

"""List every tensor that a model holds: parameters, buffers and plain attributes of modules."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch

from tranship.schema.manifest import Kind

_REGISTERED = frozenset({"_parameters", "_buffers", "_modules"})


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A tensor of a live model, under the name that its module path gives it."""

    name: str
    kind: Kind
    tensor: torch.Tensor

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two tensors that are the same elements of the same memory."""
        tensor = self.tensor
        layout = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        return tensor.untyped_storage(), tensor.dtype, *layout


def inventory(model: torch.nn.Module) -> tuple[Live, ...]:
    """List the model's tensors under all their names: parameters, then buffers, then attributes."""
    parameters = model.named_parameters(remove_duplicate=False)
    buffers = model.named_buffers(remove_duplicate=False)
    return (
        *(Live(name, Kind.PARAMETER, tensor.detach()) for name, tensor in parameters),
        *(Live(name, Kind.BUFFER, tensor) for name, tensor in buffers),
        *(Live(name, Kind.ATTRIBUTE, tensor) for name, tensor in _attributes(model)),
    )


def originals(live: tuple[Live, ...]) -> dict[str, str]:
    """Map every name to the first name of the same memory: its own, unless it is an alias."""
    first: dict[tuple[object, ...], str] = {}
    return {entry.name: first.setdefault(entry.identity, entry.name) for entry in live}


def _attributes(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if name not in _REGISTERED:
                yield from _tensors_in(f"{path}.{name}" if path else name, value)


def _tensors_in(name: str, value: object) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in cast("Mapping[object, object]", value).items():
            yield from _tensors_in(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(cast("list[object]", value)):
            yield from _tensors_in(f"{name}.{position}", item)

"""What the modules of a trainer's model hold: parameters and buffers, under all of their names."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from tranship.runtime.live import held_tensors, submodules
from tranship.schema.manifest import Kind

RECOMPUTED = "not in the module's state: the module computes it from its configuration"
"""Why no transfer is about a buffer that a module does not save."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor under one of its names; `original` is the first name of the same tensor.

    `persistent` tells whether it is part of the module's state.
    """

    name: str
    original: str
    kind: Kind
    persistent: bool
    tensor: Tensor


def named_tensors(model: nn.Module) -> Iterator[Held]:
    """Yield all parameters and buffers; of a tensor's names, one in the module's state is first."""
    found = [
        (".".join((*path, key)), kind, _is_persistent(owner, key), tensor)
        for path, owner in submodules(model)
        for kind, key, tensor in held_tensors(owner)
        if kind is not Kind.ATTRIBUTE
    ]
    originals: dict[int, str] = {}
    for name, kind, persistent, tensor in sorted(found, key=lambda entry: not entry[2]):
        yield Held(name, originals.setdefault(id(tensor), name), kind, persistent, tensor)


def _is_persistent(owner: nn.Module, key: str) -> bool:
    # Asking for the state dict instead would run the hooks of every wrapper.
    return key not in owner._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage] -- no public way

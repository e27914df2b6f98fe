"""The tensors of a live model, by the names under which its modules hold them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tranship.schema.manifest import Kind


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """A tensor of a model, and the way to it.

    `tensor` is the memory of this rank that the module held when it was looked at. The module lies
    below `root` at `path`, and holds the tensor as `key`.
    """

    tensor: Tensor
    kind: Kind
    root: nn.Module
    path: tuple[str, ...]
    key: str

    def read(self) -> Tensor | None:
        """Return what the model holds in this place now, or None if that is no tensor."""
        holder: object = self.root
        for name in (*self.path, self.key):
            holder = getattr(holder, name, None)
        return local_tensor(holder) if isinstance(holder, Tensor) else None


def live_tensors(module: nn.Module) -> dict[str, LiveTensor]:
    """Collect every parameter, buffer and plain tensor attribute of `module` and its submodules.

    A tensor that is held in several places has several names. Of a DTensor, the part that this
    rank holds is taken.
    """
    found: dict[str, LiveTensor] = {}
    for path, owner in submodules(module):
        for kind, key, tensor in held_tensors(owner):
            live = LiveTensor(local_tensor(tensor), kind, module, path, key)
            found[".".join((*path, key))] = live
    return found


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the memory of `tensor` on this rank, outside of autograd."""
    with torch.no_grad():
        held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return held.detach()


def submodules(module: nn.Module) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Yield `module` and all modules below it with their paths, one that has several repeatedly."""
    named = cast("Iterator[tuple[str, nn.Module]]", module.named_modules(remove_duplicate=False))
    for name, owner in named:
        yield tuple(name.split(".")) if name else (), owner


def held_tensors(owner: nn.Module) -> Iterator[tuple[Kind, str, Tensor]]:
    """Yield what one module itself holds: its parameters, its buffers, then other attributes."""
    for key, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
        yield Kind.PARAMETER, key, parameter
    for key, buffer in owner.named_buffers(recurse=False, remove_duplicate=False):
        yield Kind.BUFFER, key, buffer
    for key, value in vars(owner).items():
        if isinstance(value, Tensor):
            yield Kind.ATTRIBUTE, key, value

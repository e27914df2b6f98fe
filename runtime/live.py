"""The tensors of a live model, by the names under which its modules hold them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tranship.schema.manifest import Kind

Modules = dict[tuple[nn.Module, tuple[str, ...]], object]
"""What lies at a path below a root."""


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

    def read(self, seen: Modules) -> Tensor | None:
        """Return what the model holds in this place now, or None if that is no tensor.

        `seen` keeps the modules on the way for the next tensors; it starts empty.
        """
        held: object = getattr(_module(self.root, self.path, seen), self.key, None)
        return held if isinstance(held, Tensor) else None


def _module(root: nn.Module, path: tuple[str, ...], seen: Modules) -> object:
    if not path:
        return root
    if (root, path) not in seen:
        seen[root, path] = getattr(_module(root, path[:-1], seen), path[-1], None)
    return seen[root, path]


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

"""The tensors of a live model, by the names under which its modules hold them."""

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter, is_
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
    below `root` at `path`, and holds the tensor as `key`. If it keeps codes as integers, `viewed`
    is the dtype that they are of, and `tensor` a view of that dtype.
    """

    tensor: Tensor
    kind: Kind
    root: nn.Module
    path: tuple[str, ...]
    key: str
    viewed: torch.dtype | None = None

    def read(self, seen: Modules) -> Tensor | None:
        """Return what the model holds in this place now, or None if that is no tensor.

        `seen` keeps the modules on the way for the next tensors; it starts empty.
        """
        held: object = getattr(_module(self.root, self.path, seen), self.key, None)
        if not isinstance(held, Tensor):
            return None
        if self.viewed is None or held.dtype.itemsize != self.viewed.itemsize:
            return held
        return held.view(self.viewed)


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


def parameters_called(module: nn.Module, names: Container[str]) -> frozenset[int]:
    """Return the identities of the parameters below `module` that have one of these names.

    A parameter may have others, too, where a module is held in several places.
    """
    named = module.named_parameters(remove_duplicate=False)
    return frozenset(id(parameter) for name, parameter in named if name in names)


def held_tensors(owner: nn.Module) -> Iterator[tuple[Kind, str, Tensor]]:
    """Yield what one module itself holds: its parameters, its buffers, then other attributes."""
    for key, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
        yield Kind.PARAMETER, key, parameter
    for key, buffer in owner.named_buffers(recurse=False, remove_duplicate=False):
        yield Kind.BUFFER, key, buffer
    for key, value in vars(owner).items():
        if isinstance(value, Tensor):
            yield Kind.ATTRIBUTE, key, value


@dataclass(frozen=True, slots=True)
class Watch:
    """Where the modules of a model hold what was bound: dictionaries, keys, and the objects there.

    Of distributed tensors, `parts` are what they hold of this rank. `tensors` are this rank's
    memory, with their addresses, shapes, strides and dtypes.
    """

    places: list[dict[str, object]]
    keys: list[str]
    held: list[object]
    distributed: list[DTensor]
    parts: list[Tensor]
    tensors: list[Tensor]
    addresses: list[int]
    shapes: list[torch.Size]
    strides: list[tuple[int, ...]]
    dtypes: list[torch.dtype]

    def in_place(self) -> bool:
        """Whether the same objects are there, at the same addresses.

        False does not mean that anything has changed; `LiveTensor.read` tells.
        """
        found = map(dict[str, object].get, self.places, self.keys)
        return (
            all(map(is_, found, self.held))
            and all(map(is_, map(_part, self.distributed), self.parts))
            and list(map(Tensor.data_ptr, self.tensors)) == self.addresses
        )

    def unchanged(self) -> bool:
        """Whether they are also of the same shapes, strides and dtypes: below a microsecond each.

        False does not mean that anything has changed; `LiveTensor.read` tells.
        """
        return (
            self.in_place()
            and list(map(_shape, self.tensors)) == self.shapes
            and list(map(Tensor.stride, self.tensors)) == self.strides
            and list(map(_dtype, self.tensors)) == self.dtypes
        )


def watch(live: Iterable[LiveTensor]) -> Watch:
    """Watch the places of bound tensors, and the modules on the way to them."""
    held: dict[tuple[int, str], tuple[dict[str, object], object]] = {}
    distributed: list[DTensor] = []
    tensors: list[Tensor] = []
    for each in live:
        owner: object = each.root
        for name in each.path:
            owner = _hold(held, owner, name)
        tensor = _hold(held, owner, each.key)
        if isinstance(tensor, DTensor):
            distributed.append(tensor)
            tensor = _part(tensor)
        if isinstance(tensor, Tensor):
            tensors.append(tensor)
    return Watch(
        [place for place, _ in held.values()],
        [key for _, key in held],
        [value for _, value in held.values()],
        distributed,
        [_part(tensor) for tensor in distributed],
        tensors,
        [tensor.data_ptr() for tensor in tensors],
        [tensor.shape for tensor in tensors],
        [tensor.stride() for tensor in tensors],
        [tensor.dtype for tensor in tensors],
    )


# `to_local` makes a new view at every call; this is the tensor that it is a view of.
_part: Callable[[DTensor], Tensor] = attrgetter("_local_tensor")

_shape: Callable[[Tensor], torch.Size] = attrgetter("shape")
_dtype: Callable[[Tensor], torch.dtype] = attrgetter("dtype")

_REGISTERS = ("_parameters", "_buffers", "_modules")


def _hold(
    held: dict[tuple[int, str], tuple[dict[str, object], object]], owner: object, key: str
) -> object:
    """Note where `owner` has its attribute `key`, and return the attribute."""
    place: dict[str, object] = vars(owner)
    for name in _REGISTERS:
        register = cast("dict[str, object]", place.get(name) or {})
        if key in register:
            place = register
            break
    value = place.get(key)
    held[id(place), key] = place, value
    return value

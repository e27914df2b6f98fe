"""Tensors that modules have as plain attributes, and that an engine may replace by others."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tranship.runtime.live import held_tensors, submodules
from tranship.schema.manifest import Kind


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor that a module has as a plain attribute."""

    owner: nn.Module
    key: str
    tensor: Tensor

    def put_back(self) -> None:
        """Give the tensor the value of the one that has taken its place, and its place."""
        held: object = getattr(self.owner, self.key)
        if held is self.tensor or not isinstance(held, Tensor):
            return
        # Another shape or dtype is told by the session, as any tensor that was replaced.
        if (held.shape, held.dtype) == (self.tensor.shape, self.tensor.dtype):
            self.tensor.copy_(held)
            setattr(self.owner, self.key, self.tensor)


def find_attributes(model: nn.Module) -> Mapping[int, Sequence[Place]]:
    """Return where the model has plain tensors, by their addresses."""
    found: defaultdict[int, list[Place]] = defaultdict(list)
    for _, owner in submodules(model):
        for kind, key, tensor in held_tensors(owner):
            if kind is Kind.ATTRIBUTE:
                found[tensor.data_ptr()].append(Place(owner, key, tensor))
    return found

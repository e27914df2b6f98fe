"""The model chunks of one Megatron rank, and the tensors in them by names unique on the rank.

A rank has one chunk, or several with virtual pipeline stages, whose modules go by the same names.
So with several the chunk's number comes first, as in `torch.nn.ModuleList(chunks)`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from tranship.runtime.frameworks.held import Held, named_tensors
from tranship.runtime.frameworks.megatron.block_scaled import BlockScaled, block_scaled, part_name
from tranship.runtime.live import LiveTensor, live_tensors
from tranship.schema.manifest import Kind


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk without wrappers; `prefix` comes before all names in it."""

    prefix: str
    model: nn.Module

    def held(self) -> Iterator[Held]:
        """Yield its parameters and buffers by the names that they have on the rank."""
        for item in named_tensors(self.model):
            name, original = self.prefix + item.name, self.prefix + item.original
            yield replace(item, name=name, original=original)


def numbered(chunks: Sequence[nn.Module]) -> tuple[Chunk, ...]:
    """Take the wrappers off all chunks (DistributedDataParallel, Float16Module), and number them.

    Raises:
        ValueError: there is no chunk.
    """
    if not chunks:
        raise ValueError("a rank has at least one model chunk")
    alone = len(chunks) == 1
    return tuple(
        Chunk("" if alone else f"{number}.", _unwrapped(chunk))
        for number, chunk in enumerate(chunks)
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    # What Megatron-core wraps a model in holds it as `module`; no model has a module of that name.
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def megatron_tensors(chunks: Sequence[nn.Module]) -> dict[str, LiveTensor]:
    """Collect the tensors of a rank's chunks, by the names that `megatron_declaration` gives them.

    Of a parameter that Transformer Engine keeps in blocks of FP8, the codes and the scales are
    further tensors, named as `part_name` says.

    Args:
        chunks: The rank's model chunks in the order of their virtual stages, wrapped or not.
    """
    models = [chunk.model for chunk in numbered(chunks)]
    found = live_tensors(models[0] if len(models) == 1 else nn.ModuleList(models))
    for name, live in list(found.items()):
        parameter = live.read({})
        if live.kind is Kind.PARAMETER and (scaled := block_scaled(parameter)):
            found |= dict(_parts(name, live, scaled))
    return found


def _parts(name: str, live: LiveTensor, scaled: BlockScaled) -> Iterator[tuple[str, LiveTensor]]:
    path = (*live.path, live.key)
    for key, tensor in scaled.parts():
        yield part_name(name, key), _part(tensor, live.root, path, key)


def _part(tensor: Tensor, root: nn.Module, path: tuple[str, ...], key: str) -> LiveTensor:
    return LiveTensor(tensor.detach(), Kind.ATTRIBUTE, root, path, key, tensor.dtype)

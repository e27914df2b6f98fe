"""Where a rank's tensors lie in the whole ones, as Megatron-core's distributed checkpoint has it.

`sharded_state_dict` gives a ShardedTensor for every tensor of a chunk's state, or a factory that
divides it into several (gate and up of a gated MLP). Nothing is copied to ask: a factory gets a
tensor of the same shape without memory, and tells by views of it where its parts lie.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tranship.schema.records import Ints

MAPPING = "megatron.core.dist_checkpointing.mapping"


@dataclass(frozen=True, slots=True)
class Shard:
    """A box of a whole tensor, and where it lies in a rank's tensor.

    Megatron stacks what layers and experts have alike along axes of its own: `numbers` are this
    tensor's place on each of these axes, `counts` their sizes. All other fields are without them.
    `shape` is that of the whole tensor, `start` and `extent` are the box. Its element `k` lies at
    `offset + sum(k * strides)` of the rank's tensor, counted from the tensor's first. `padded` says
    that the whole tensor is padded to a size that depends on the parallel sizes.
    """

    key: str
    numbers: Ints
    counts: Ints
    shape: Ints
    start: Ints
    extent: Ints
    offset: int
    strides: Ints
    padded: bool


def shards_of(chunk: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Shard, ...]]:
    """Ask a chunk for the shards of its tensors, by their names in it.

    A tensor is missing that Megatron has no place for, or whose parts are not in its memory.

    Args:
        chunk: A Megatron-core model without wrappers.
        tensors: Its parameters and buffers by name.
    """
    mapping = importlib.import_module(MAPPING)
    groups = importlib.import_module("megatron.core.parallel_state")
    # A stage that predicts further tokens does not look the group up itself (0.16.1, gpt_model.py).
    group = groups.get_data_parallel_group(with_context_parallel=True)
    given = cast("Any", chunk).sharded_state_dict(metadata={"dp_cp_group": group})
    state = cast("dict[str, object]", given)
    found: dict[str, tuple[Shard, ...]] = {}
    for name, entry in state.items():
        if name in tensors and (shards := _shards(entry, tensors[name], mapping)):
            found[name] = shards
    return found


def _shards(entry: Any, tensor: Tensor, mapping: Any) -> tuple[Shard, ...]:
    shape, strides = tuple(tensor.shape), tensor.stride()
    if isinstance(entry, mapping.ShardedTensorFactory):
        form = torch.empty_strided(shape, strides, dtype=tensor.dtype, device="meta")
        built = list(_flat(dataclasses.replace(entry, data=form).build()))
        if not all(isinstance(part, mapping.ShardedTensor) for part in built):
            return ()
        if not all(_is_view(part.data, form) for part in built):
            return ()
        return tuple(_shard(part, part.data.storage_offset(), part.data.stride()) for part in built)
    if isinstance(entry, mapping.ShardedTensor) and tuple(entry.local_shape) == shape:
        return (_shard(entry, 0, strides),) if _is_same(entry.data, tensor) else ()
    return ()


def _flat(built: Any) -> Iterator[Any]:
    """Yield what a factory has built, a part or parts in lists and dictionaries."""
    if isinstance(built, dict):
        built = list(cast("dict[Any, Any]", built).values())
    if isinstance(built, list | tuple):
        for part in cast("list[Any]", built):
            yield from _flat(part)
    else:
        yield built


def _is_same(data: Any, tensor: Tensor) -> bool:
    """Whether what is sharded lies as the tensor does, if it is in the same form at all."""
    if not isinstance(data, Tensor) or data.dtype != tensor.dtype:
        return True
    return (data.data_ptr(), data.stride()) == (tensor.data_ptr(), tensor.stride())


def _is_view(part: Any, form: Tensor) -> bool:
    return part is form or getattr(part, "_base", None) is form


def _shard(entry: Any, offset: int, strides: Ints) -> Shard:
    stacked = int(entry.prepend_axis_num)
    sizes, offsets = tuple(entry.global_shape), tuple(entry.global_offset)
    return Shard(
        key=entry.key,
        numbers=offsets[:stacked],
        counts=sizes[:stacked],
        shape=sizes[stacked:],
        start=offsets[stacked:],
        extent=tuple(entry.local_shape),
        offset=offset,
        strides=strides,
        padded=bool(entry.allow_shape_mismatch),
    )

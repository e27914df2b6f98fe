"""How Megatron-core numbers its ranks, as axes of a mesh."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from tranship.schema.manifest import Axis

ORDER = "tp-cp-ep-dp-pp"
"""What changes from one rank to the next comes first; `initialize_model_parallel`'s default."""


@dataclass(frozen=True, slots=True)
class ParallelSizes:
    """The sizes of Megatron's parallel groups, by the names of the groups.

    `etp` is the tensor parallel size of experts, that of everything else if it is None. What is
    left of `world_size` is data parallel.
    """

    world_size: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int | None = None


def megatron_axes(sizes: ParallelSizes, order: str = ORDER) -> tuple[Axis, ...]:
    """Return the axes of Megatron's ranks that have more than one coordinate.

    Experts lie on a mesh of their own, of the same ranks: `ep`, and `etp` if it is not `tp`.

    Args:
        sizes: Sizes as `initialize_model_parallel` was given them.
        order: Its argument of this name.

    Raises:
        ValueError: sizes do not divide the world size, or the stages of the two meshes differ.
    """
    etp = sizes.tp if sizes.etp is None else sizes.etp
    dense = _axes({"tp": sizes.tp, "cp": sizes.cp, "pp": sizes.pp, "ep": 1}, sizes, order)
    experts = _axes({"tp": etp, "cp": 1, "pp": sizes.pp, "ep": sizes.ep}, sizes, order)
    if dense["pp"] != experts["pp"]:
        raise ValueError(f"by order {order!r} experts would have pipeline stages of their own")
    axes = [axis for name, axis in dense.items() if name != "ep"]
    if etp != sizes.tp:
        axes.append(experts["tp"].model_copy(update={"name": "etp"}))
    return tuple(axis for axis in (*axes, experts["ep"]) if axis.size > 1)


def _axes(groups: Mapping[str, int], sizes: ParallelSizes, order: str) -> dict[str, Axis]:
    taken = prod(groups.values())
    if sizes.world_size % taken:
        raise ValueError(f"groups of {dict(groups)} do not divide {sizes.world_size} ranks")
    held = {**groups, "dp": sizes.world_size // taken}
    named = order.split("-")
    left_out = [name for name in held if name not in named]
    if any(held[name] > 1 for name in left_out):
        raise ValueError(f"order {order!r} leaves out one of {left_out}")
    axes: dict[str, Axis] = {}
    stride = 1
    for name in (*named, *left_out):
        axes[name] = Axis(name=name, size=held[name], stride=stride)
        stride *= held[name]
    return axes


def parallel_axes(order: str = ORDER) -> tuple[Axis, ...]:
    """Return the axes of the ranks of this process's initialized `megatron.core.parallel_state`.

    Raises:
        ValueError: this rank's groups are not those of `order`.
    """
    state: Any = importlib.import_module("megatron.core.parallel_state")
    distributed: Any = importlib.import_module("torch.distributed")
    sizes = ParallelSizes(
        world_size=distributed.get_world_size(),
        tp=state.get_tensor_model_parallel_world_size(),
        pp=state.get_pipeline_model_parallel_world_size(),
        cp=state.get_context_parallel_world_size(),
        ep=state.get_expert_model_parallel_world_size(),
        etp=state.get_expert_tensor_parallel_world_size(),
    )
    own = {
        "tp": state.get_tensor_model_parallel_rank(),
        "pp": state.get_pipeline_model_parallel_rank(),
        "cp": state.get_context_parallel_rank(),
        "ep": state.get_expert_model_parallel_rank(),
        "etp": state.get_expert_tensor_parallel_rank(),
    }
    axes, rank = megatron_axes(sizes, order), distributed.get_rank()
    for axis in axes:
        if axis.name in own and own[axis.name] != rank // axis.stride % axis.size:
            raise ValueError(f"rank {rank} is {own[axis.name]} on {axis.name!r}, not by {order!r}")
    return axes

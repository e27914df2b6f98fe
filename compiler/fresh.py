"""Index names that clash with nothing: plans join two manifests, which chose their names alone."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from tranship.compiler.holder import Holder, rename
from tranship.compiler.inputs import Inputs
from tranship.schema.manifest import Side
from tranship.schema.mesh import RANK

Texts = tuple[str, ...]


def fresh(name: str, taken: Collection[str]) -> str:
    """Return `name`, or the first of `name_2`, `name_3`, ... that is not taken."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name[:56]}_{number}"
    return candidate


def axis_names(inputs: Inputs) -> set[str]:
    """Name everything that an expression may read besides indices: both sides' axes, and `rank`."""
    return {axis.name for side in Side for axis in inputs.manifest(side).axes} | {RANK}


def window_index(inputs: Inputs) -> str:
    """Name the index that counts an edge's windows; no tensor or piece has it."""
    return fresh("window", axis_names(inputs))


def with_fresh_names(
    inputs: Inputs, senders: Iterable[Holder], receivers: Iterable[Holder]
) -> tuple[tuple[Holder, ...], tuple[Holder, ...]]:
    """Give the indices of one tensor one name on both sides, and no two meanings to any name."""
    senders, receivers = tuple(senders), tuple(receivers)
    reserved = axis_names(inputs) | {window_index(inputs)}
    chosen: dict[Texts, tuple[str, ...]] = {}
    for holder in (*receivers, *senders):
        if holder.tensor.texts not in chosen:
            chosen[holder.tensor.texts] = _distinct(holder.tensor.index_names, reserved)
    used = reserved | {name for names in chosen.values() for name in names}
    return (
        tuple(_renamed(holder, chosen, used) for holder in senders),
        tuple(_renamed(holder, chosen, used) for holder in receivers),
    )


def _distinct(names: Iterable[str], taken: Collection[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        found.append(fresh(name, {*taken, *found}))
    return tuple(found)


def _renamed(
    holder: Holder, chosen: Mapping[Texts, tuple[str, ...]], used: Collection[str]
) -> Holder:
    names = dict(zip(holder.tensor.index_names, chosen[holder.tensor.texts], strict=True))
    own = tuple(holder.half.indices)
    names |= dict(zip(own, _distinct(own, used), strict=True))
    changed = rename(holder, names)
    order = chosen[holder.tensor.texts]
    return replace(changed, indices={name: changed.indices[name] for name in order})

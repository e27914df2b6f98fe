"""The ranks of one side: its world and its mesh, in a manifest or in a plan."""

from collections.abc import Iterator

from tranship.compiler.diffs.change import Change, Weight
from tranship.schema.manifest import Axis, Manifest
from tranship.schema.plan import PlanSide


def side_changes(
    old: Manifest | PlanSide, new: Manifest | PlanSide, side: str, pointer: str
) -> Iterator[Change]:
    """Compare the worlds and the axes of one side."""
    if old.world_size != new.world_size:
        sizes = f"{old.world_size:,}", f"{new.world_size:,}"
        yield Change("ranks", Weight.CHANGE, side, *sizes, pointer=f"{pointer}/world_size")
    before = {axis.name: axis for axis in old.axes}
    places = {axis.name: f"{pointer}/axes/{number}" for number, axis in enumerate(new.axes)}
    after = {axis.name: axis for axis in new.axes}
    for name in [*after, *(name for name in before if name not in after)]:
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        at = places.get(name, f"{pointer}/axes")
        texts = _texts(one, other)
        yield Change("axis", Weight.CHANGE, f"{side} {name}", *texts, pointer=at)
    if before == after and [*before] != [*after]:
        orders = ", ".join(before), ", ".join(after)
        yield Change("axis.order", Weight.NOTE, side, *orders, pointer=f"{pointer}/axes")


def _texts(old: Axis | None, new: Axis | None) -> tuple[str | None, str | None]:
    with_stride = old is None or new is None or old.stride != new.stride
    texts = [
        None
        if one is None
        else f"{one.size} (stride {one.stride})"
        if with_stride
        else str(one.size)
        for one in (old, new)
    ]
    return texts[0], texts[1]

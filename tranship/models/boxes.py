"""What a rule says of one tensor: the box of it that a buffer holds, and where the box lies."""

from collections.abc import Sequence
from dataclasses import dataclass

from tranship.models.algebra import Ranges, combine
from tranship.models.declared import BufferEntry, PartEntry, Stack
from tranship.models.frame import Frame
from tranship.models.language import LanguageError, Scope, expression, number
from tranship.models.model import Model, ModelTensor
from tranship.schema import indexset
from tranship.schema.expression import Constant, Expression, Interval

ONE, ZERO = Constant(1), Constant(0)


@dataclass(frozen=True)
class Held:
    """A box of the tensors of one family, and its place in the buffer.

    `above` counts the buffer's rows before the box within its slab; `slot` is the slab, if any.
    """

    tensor: ModelTensor
    start: tuple[Expression, ...]
    extent: tuple[Expression, ...]
    above: Expression
    slot: Expression | None


@dataclass(frozen=True)
class Heap:
    """All boxes that lie in one buffer family, and how they are stacked.

    `indices` are the buffer's own. `rows` counts the rows of a slab, of which there are `slots`.
    `index` is the index by which slabs differ, with its members; None where there is but one slab.
    """

    held: tuple[Held, ...]
    indices: dict[str, str]
    index: tuple[str, str] | None
    rows: Expression
    slots: Expression
    scope: Scope


def heap(
    entry: BufferEntry, parts: Sequence[PartEntry], suffix: str, model: Model, frame: Frame
) -> Heap | None:
    """Find the tensors that a rule is about, and stack their boxes; None if there are none.

    Raises:
        LanguageError: an expression has no value, or the rule does not fit the tensors.
    """
    chosen = [
        (part, model.tensors[part.role + suffix])
        for part in parts
        if part.role + suffix in model.tensors and frame_holds(part.when, frame)
    ]
    if not chosen:
        return None
    stack, first = entry.stack, chosen[0][1]
    index = _stack_index(stack, first, frame)
    indices = {name: text for name, text in first.indices.items() if not index or name != index[0]}
    for _, tensor in chosen:
        if {k: v for k, v in tensor.indices.items() if k in indices} != indices:
            raise LanguageError(f"{tensor.name} and {first.name} are not of the same layers")
    sets = indices | ({index[0]: index[1]} if index else {})
    fixed = {stack.index: 0} if stack and not index else {}
    scope = frame.with_indices({name: bounds(text) for name, text in sets.items()}, fixed)
    return _stacked(chosen, stack, indices, index, scope)


def frame_holds(condition: str | None, frame: Frame) -> bool:
    """Whether a rule's condition, if it has one, holds."""
    return condition is None or number(condition, frame.scope) != 0


def bounds(members: str) -> Interval:
    """Smallest and largest member of an index set."""
    found = indexset.parse(members)
    return found[0], found[-1]


def _stack_index(stack: Stack | None, first: ModelTensor, frame: Frame) -> tuple[str, str] | None:
    if stack is None:
        return None
    if stack.count is None:
        if stack.index not in first.indices:
            raise LanguageError(f"{first.name} has no index {stack.index!r} to stack by")
        return stack.index, first.indices[stack.index]
    count = number(stack.count, frame.scope)
    return None if count == 1 else (stack.index, f"0..{count - 1}")


def _stacked(
    chosen: Sequence[tuple[PartEntry, ModelTensor]],
    stack: Stack | None,
    indices: dict[str, str],
    index: tuple[str, str] | None,
    scope: Scope,
) -> Heap:
    held: list[Held] = []
    lanes: dict[object, Expression] = {}
    usual = expression(stack.slot, scope) if stack else None
    for part, tensor in chosen:
        shape = tensor.shape
        own = scope.plus({"rows": shape[0] if shape else 1, "columns": (*shape, 1, 1)[1]})
        start, extent = _box(part, tensor, own)
        slot = usual if part.slot is None else expression(part.slot, scope)
        above = lanes.get(slot, ZERO)
        held.append(Held(tensor, start, extent, above, slot))
        lanes[slot] = combine("+", above, extent[0] if extent else ONE, scope.ranges)
    if len(set(lanes.values())) > 1:
        raise LanguageError("the slabs of a stack differ in their rows")
    slots = expression(stack.slots, scope) if stack else ONE
    return Heap(tuple(held), indices, index, next(iter(lanes.values())), slots, scope)


def _box(
    part: PartEntry, tensor: ModelTensor, scope: Scope
) -> tuple[tuple[Expression, ...], tuple[Expression, ...]]:
    start: list[Expression] = []
    extent: list[Expression] = []
    for dim, size in enumerate(tensor.shape):
        cut = (part.rows, part.columns)[dim] if dim < 2 else None
        start.append(ZERO if cut is None else expression(cut[0], scope))
        extent.append(Constant(size) if cut is None else expression(cut[1], scope))
    return tuple(start), tuple(extent)


def in_blocks(
    start: Expression, extent: Expression, block: int, ranges: Ranges
) -> tuple[Expression, Expression]:
    """Turn a range of elements, which starts at the edge of a block, into one of blocks."""
    above = combine("+", extent, Constant(block - 1), ranges)
    return (
        combine("//", start, Constant(block), ranges),
        combine("//", above, Constant(block), ranges),
    )

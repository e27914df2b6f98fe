"""From stacked boxes to a buffer family: shape, offsets, pieces and fills."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tranship.models.algebra import Ranges, combine
from tranship.models.boxes import ZERO, Heap
from tranship.models.language import LanguageError
from tranship.schema.expression import Constant, Expression, to_text, variables
from tranship.schema.manifest import Fill, IntExpression, Part, Piece


@dataclass(frozen=True)
class Slabs:
    """The physical side of a heap: rows of `inner` elements, in slabs that may have their own dim.

    `padded` is the number of rows of a slab with its padding, or None without.
    """

    rows: Expression
    slots: Expression
    own_dim: bool
    inner: tuple[Expression, ...]
    padded: int | None

    def shape(self, ranges: Ranges) -> tuple[IntExpression, ...]:
        """The buffer's shape."""
        rows = self.rows if self.padded is None else Constant(self.padded)
        if self.own_dim:
            return texts([self.slots, rows, *self.inner])
        return texts([combine("*", rows, self.slots, ranges), *self.inner])

    def width(self, ranges: Ranges) -> Expression:
        """Elements in a row."""
        return product(self.inner, ranges)


def texts(expressions: Sequence[Expression]) -> tuple[IntExpression, ...]:
    """Print expressions."""
    return tuple(to_text(one) for one in expressions)


def product(factors: Sequence[Expression], ranges: Ranges) -> Expression:
    """Multiply expressions."""
    result: Expression = Constant(1)
    for factor in factors:
        result = combine("*", result, factor, ranges)
    return result


def offset(
    slot: Expression | None, above: Expression, slabs: Slabs, ranges: Ranges
) -> IntExpression:
    """Where a box begins that lies `above` rows down in its slab."""
    width = slabs.width(ranges)
    down = combine("*", above, width, ranges)
    if slot is None:
        return to_text(down)
    slab = combine("*", slabs.rows, width, ranges)
    return to_text(combine("+", combine("*", slot, slab, ranges), down, ranges))


def pieces(
    heap: Heap,
    slabs: Slabs,
    boxes: Sequence[tuple[tuple[Expression, ...], tuple[Expression, ...], Expression]],
    at: Mapping[str, IntExpression],
    part: Part,
) -> tuple[Piece, ...]:
    """Declare the boxes (start, extent, rows above) of a heap's tensors, in their order."""
    ranges = heap.scope.ranges
    found: list[Piece] = []
    for held, (start, extent, above) in zip(heap.held, boxes, strict=True):
        by_slab = heap.index is not None and (
            heap.index[0] in held.tensor.indices or _mentions(heap.index[0], held.slot)
        )
        found.append(
            Piece(
                tensor=held.tensor.name,
                part=part,
                indices={heap.index[0]: heap.index[1]} if heap.index and by_slab else {},
                at=dict(at) if by_slab or heap.index is None else {},
                start=texts(start),
                extent=texts(extent),
                offset=offset(held.slot, above, slabs, ranges),
            )
        )
    return tuple(found)


def _mentions(index: str, slot: Expression | None) -> bool:
    return slot is not None and index in variables(slot)


def padding(
    slabs: Slabs, value: int | None, reason: str | None, ranges: Ranges
) -> tuple[Fill, ...]:
    """Declare the rows after the last box as filled, or as excused."""
    if slabs.padded is None:
        return ()
    missing = combine("-", Constant(slabs.padded), slabs.rows, ranges)
    if missing == ZERO:
        return ()
    inner = [_known(size) for size in slabs.inner]
    strides = [math.prod(inner[dim:]) for dim in range(len(inner) + 1)]
    return (
        Fill(
            offset=offset(None, slabs.rows, slabs, ranges),
            sizes=texts([missing, *slabs.inner]),
            strides=tuple(strides),
            value=value,
            reason=reason,
        ),
    )


def _known(size: Expression) -> int:
    if not isinstance(size, Constant):
        raise LanguageError("the rows of a padded buffer must be of one length on all ranks")
    return size.value

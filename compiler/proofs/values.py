"""The expressions that the proofs read of pieces and halves, besides where these exist."""

from collections.abc import Iterator, Mapping

from tranship.schema.expression import parse
from tranship.schema.manifest import IntExpression, Piece
from tranship.schema.plan import Half


def piece_values(piece: Piece) -> tuple[IntExpression, ...]:
    """Everything that says what a piece holds, and where."""
    parts = (piece.strides or (), piece.origin or ())
    return (*piece.start, *piece.extent, piece.offset, *parts[0], *parts[1])


def half_values(half: Half) -> Iterator[IntExpression]:
    """Everything that says what half of an edge holds, and where, scales included."""
    yield from (*half.start, *half.extent, half.offset, *half.strides, *(half.origin or ()))
    if half.scale is not None:
        scale = half.scale
        yield from (*scale.start, *scale.extent, scale.offset, *scale.strides)


def clashes(
    buffer: Mapping[str, IntExpression], own: Mapping[str, IntExpression]
) -> Iterator[IntExpression]:
    """Axes that a buffer and its piece limit differently, and by what."""
    for axis in buffer.keys() & own.keys():
        if parse(buffer[axis]) != parse(own[axis]):
            yield from (axis, buffer[axis], own[axis])

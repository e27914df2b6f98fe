"""Whether it may matter which of several holders of one box sends it.

All holders of a box hold the same values. But the proofs also look at how the one that sends
holds them: at its buffer's layout and strides, at the origin of its blocks, and at which values
its scales may have. `units.py` narrows no unit in which holders may differ in one of these, since
then the turn of an edge, which it leaves out, would have to be read.
"""

from collections.abc import Iterable, Iterator, Sequence

from tranship.schema.expression import parse, variables
from tranship.schema.manifest import BufferFamily, IntExpression, Scaled
from tranship.schema.plan import Edge, Op


def senders_matter(
    edges: Iterable[Edge], senders: Sequence[BufferFamily], receivers: Sequence[BufferFamily]
) -> bool:
    """Whether a proof may see which holder sends, given all edges and buffers of a unit."""
    copies = [edge for edge in edges if edge.op is Op.COPY]
    opaque = any(buffer.layout != "row_major" for buffer in (*senders, *receivers))
    if not copies or not (opaque or any(edge.sender.block is not None for edge in copies)):
        return False
    ways = {_way(buffer) for buffer in senders if buffer.role.kind == "transfer"}
    if len(ways) > len({kind for kind, *_ in ways}):
        return True
    return any(
        not variables(parse(text)) <= edge.indices.keys()
        for edge in copies
        for text in _told(edge, opaque=opaque)
    )


def _way(buffer: BufferFamily) -> tuple[str, str, str]:
    values = buffer.encoding.scale_values if isinstance(buffer.encoding, Scaled) else ""
    return buffer.encoding.kind, buffer.layout, values


def _told(edge: Edge, *, opaque: bool) -> Iterator[IntExpression]:
    """What the proofs read of the holder that sends."""
    half = edge.sender
    if half.block is not None:
        yield from half.origin or ()
    if opaque:
        yield from half.strides
        yield from half.scale.strides if half.scale else ()

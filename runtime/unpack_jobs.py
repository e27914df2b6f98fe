"""What a receiver rank does for the moves of an edge: jobs from its staging slot to its buffers.

Values that the receiver quantizes are gathered over all edges: `assemble.py` makes their jobs.
"""

from tranship.runtime.addresses import (
    BufferNumbers,
    Site,
    scale_bytes,
    scales_of,
    site,
    value_bytes,
    value_strides,
)
from tranship.runtime.jobs import (
    DTYPE_NUMBER,
    Batch,
    JobOp,
    pad_dims,
    whole_jobs,
    wire_fragments,
    without_empty,
)
from tranship.schema.expression import IntArray
from tranship.schema.plan import Edge, Op, Place
from tranship.schema.wire import Lane, align


def assembles(edge: Edge) -> bool:
    """Whether the receiver makes blocks of what `edge` brings, possibly with other edges."""
    at_receiver = edge.place is Place.RECEIVER
    return edge.op is Op.AMAX or (edge.op in (Op.QUANTIZE, Op.REQUANTIZE) and at_receiver)


def unpack_batches(
    edge: Edge, lane: Lane, position: IntArray, buffers: BufferNumbers, dims: int
) -> list[Batch]:
    """Return the jobs that take the moves of `lane` off the wire, for an edge that brings no parts.

    Args:
        edge: The edge of all the moves; `assembles` does not hold for it.
        lane: Moves to one receiver rank, with what they put on the wire.
        position: Byte of the slot, `[n]`, at which each move's payload starts.
        buffers: Numbers the buffers.
        dims: Dims of the tables.

    Raises:
        ValueError: what arrives is not what the receiver's half holds.
    """
    target = site(edge.receiver, lane.moves.receiver, edge.shape, buffers)
    values = _values(edge, lane, position, target, dims)
    return (
        [values, _scales(lane, position, target, dims)] if lane.payload.format.scales else [values]
    )


def _values(edge: Edge, lane: Lane, position: IntArray, target: Site, dims: int) -> Batch:
    dtype, region = lane.payload.format.values, lane.moves.region
    cast = edge.op is Op.CAST and edge.place is Place.RECEIVER
    if dtype is None or (dtype != target.dtype and not cast):
        raise ValueError(f"{edge.tensor!r} arrives as {dtype} in a buffer of {target.dtype}")
    op = JobOp.CAST if cast else JobOp.COPY
    jobs = whole_jobs(op, lane.moves.edge, region.extent, dims)
    jobs["target"], jobs["target_dtype"] = target.buffer, DTYPE_NUMBER[target.dtype]
    jobs["target_offset"] = value_bytes(target, region)
    jobs["target_strides"] = pad_dims(value_strides(target, region), dims, 0)
    fragments = wire_fragments(dtype, position, region.extent, dims)
    return Batch(lane.moves.round, jobs, fragments)


def _scales(lane: Lane, position: IntArray, target: Site, dims: int) -> Batch:
    scale, buffer, dtype, _ = scales_of(target)
    blocks, counts = lane.payload.blocks, lane.payload.block_counts
    jobs = whole_jobs(JobOp.COPY, lane.moves.edge, counts, dims)
    jobs["target"], jobs["target_dtype"] = buffer, DTYPE_NUMBER[dtype]
    jobs["target_offset"] = scale_bytes(target, blocks)
    jobs["target_strides"] = pad_dims(scale.strides, dims, 0)
    place = position + align(lane.payload.value_bytes)
    return without_empty(Batch(lane.moves.round, jobs, wire_fragments(dtype, place, counts, dims)))

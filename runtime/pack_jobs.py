"""What a sender rank does for the moves of an edge: jobs from its buffers to its staging slot."""

import numpy as np

from tranship.runtime.addresses import (
    BufferNumbers,
    Site,
    read_scales,
    read_values,
    scales_of,
    site,
)
from tranship.runtime.jobs import (
    DTYPE_NUMBER,
    FORMULA_NAMES,
    NOWHERE,
    SLOT,
    Batch,
    JobOp,
    pad_dims,
    row_major,
    whole_jobs,
    without_empty,
)
from tranship.schema.boxes import Boxes, contains, grow_to_cells
from tranship.schema.dtypes import DType, widens
from tranship.schema.expression import IntArray
from tranship.schema.moves import edge_block
from tranship.schema.plan import Edge, Op, Place
from tranship.schema.records import Ints
from tranship.schema.wire import Lane, align

_AT_SENDER = {
    Op.COPY: JobOp.COPY,
    Op.CAST: JobOp.CAST,
    Op.QUANTIZE: JobOp.QUANTIZE,
    Op.DEQUANTIZE: JobOp.DEQUANTIZE,
    Op.REQUANTIZE: JobOp.QUANTIZE,
    Op.AMAX: JobOp.AMAX,
}
_FOR_RECEIVER = {
    Op.CAST: JobOp.COPY,
    Op.QUANTIZE: JobOp.COPY,
    Op.REQUANTIZE: JobOp.DEQUANTIZE,
}


def pack_batches(
    edge: Edge, lane: Lane, position: IntArray, buffers: BufferNumbers, dims: int
) -> list[Batch]:
    """Return the jobs that put the moves of `lane` on the wire.

    Args:
        edge: The edge of all the moves.
        lane: Moves of one sender rank, with what they put on the wire.
        position: Byte of the slot, `[n]`, at which each move's payload starts.
        buffers: Numbers the buffers.
        dims: Dims of the tables.

    Raises:
        ValueError: the edge asks for what its halves do not have.
    """
    op = sender_op(edge)
    source = site(edge.sender, lane.moves.sender, edge.shape, buffers)
    if op in (JobOp.QUANTIZE, JobOp.AMAX):
        return [_by_blocks(edge, op, lane, position, source, dims)]
    values = _values(edge, op, lane, position, source, lane.moves.region, dims)
    if edge.op is Op.COPY and lane.payload.format.scales:
        return [values, _passed_scales(edge, lane, position, source, dims)]
    return [values]


def sender_op(edge: Edge) -> JobOp:
    """Return what the sender does to the values of `edge`.

    Raises:
        ValueError: the transform runs where the wire does not bring what it needs.
    """
    operations = _AT_SENDER if edge.place is Place.SENDER else _FOR_RECEIVER
    if edge.op not in operations:
        raise ValueError(f"{edge.op} of {edge.tensor!r} cannot run at the {edge.place}")
    return operations[edge.op]


def _blocks_of(edge: Edge) -> Ints:
    """Return the block in elements of an edge that quantizes, or carries amaxes.

    Raises:
        ValueError: neither half has blocks.
    """
    block = edge_block(edge)
    if block is None:
        raise ValueError(f"{edge.op} of {edge.tensor!r} needs blocks, and neither side has any")
    return block


def _values(
    edge: Edge, op: JobOp, lane: Lane, position: IntArray, source: Site, box: Boxes, dims: int
) -> Batch:
    """Compute `box` of every move and write the values of its region, if any travel."""
    region, form = lane.moves.region, lane.payload.format
    if op is JobOp.COPY and source.dtype != form.values:
        raise ValueError(f"{edge.tensor!r} is copied from {source.dtype} as {form.values}")
    jobs = whole_jobs(op, lane.moves.edge, box.extent, dims)
    jobs["inner_start"] = pad_dims(region.start - box.start, dims, 0)
    jobs["inner_extent"] = pad_dims(region.extent, dims, 1)
    if form.values:
        jobs["target"], jobs["target_dtype"] = SLOT, DTYPE_NUMBER[form.values]
        jobs["target_offset"] = position
        jobs["target_strides"] = pad_dims(row_major(region.extent), dims, 0)
    codes = op in (JobOp.QUANTIZE, JobOp.AMAX) and source.scale_dtype is not None
    scaled = codes or op is JobOp.DEQUANTIZE
    return Batch(lane.moves.round, jobs, read_values(source, box, dims, scaled=scaled))


def _by_blocks(
    edge: Edge, op: JobOp, lane: Lane, position: IntArray, source: Site, dims: int
) -> Batch:
    """Quantize the region of every move, or bound its blocks."""
    if not widens(source.dtype, DType.F32):
        raise ValueError(f"{edge.tensor!r} is quantized from {source.dtype}, not exact in float32")
    block, origin = _blocks_of(edge), lane.moves.receiver.origin
    box = lane.moves.region
    if op is JobOp.QUANTIZE:
        # The codes of any part of a block depend on the whole block.
        box = grow_to_cells(box, origin, block, edge.shape)
    if not np.all(contains(source.instances.box, box)):
        raise ValueError(f"{edge.tensor!r} is quantized by senders that hold parts of its blocks")
    batch = _values(edge, op, lane, position, source, box, dims)
    first, phase = np.divmod(box.start - origin, np.array([block], np.int64))
    counts, jobs = lane.payload.block_counts, batch.jobs
    jobs["formula"] = FORMULA_NAMES.index(edge.formula) if edge.formula else -1
    jobs["block"] = pad_dims(np.broadcast_to(block, phase.shape), dims, 1)
    jobs["phase"] = pad_dims(phase, dims, 0)
    jobs["scale_target"] = np.where(np.all(counts > 0, axis=1), SLOT, NOWHERE)
    jobs["scale_dtype"] = DTYPE_NUMBER[lane.payload.format.scales or DType.F32]
    jobs["scale_offset"] = position + align(lane.payload.value_bytes)
    jobs["scale_strides"] = pad_dims(row_major(counts), dims, 0)
    jobs["scale_first"] = pad_dims(lane.payload.blocks - first, dims, 0)
    jobs["scale_counts"] = pad_dims(counts, dims, 1)
    return batch


def _passed_scales(edge: Edge, lane: Lane, position: IntArray, source: Site, dims: int) -> Batch:
    """Copy the scales that travel with codes as they are."""
    _, _, dtype, block = scales_of(source)
    # The grids of the two sides may count their blocks from different elements.
    shift, rest = np.divmod(
        lane.moves.receiver.origin - source.instances.origin, np.array([block], np.int64)
    )
    if dtype != lane.payload.format.scales or block != edge_block(edge) or np.any(rest):
        raise ValueError(f"the scales of {edge.tensor!r} do not fit those of its receiver")
    counts = lane.payload.block_counts
    jobs = whole_jobs(JobOp.COPY, lane.moves.edge, counts, dims)
    jobs["target"], jobs["target_dtype"] = SLOT, DTYPE_NUMBER[dtype]
    jobs["target_offset"] = position + align(lane.payload.value_bytes)
    jobs["target_strides"] = pad_dims(row_major(counts), dims, 0)
    fragments = read_scales(source, lane.payload.blocks + shift, counts, dims)
    return without_empty(Batch(lane.moves.round, jobs, fragments))

"""Blocks that a receiver quantizes: one job per receiver box and round, out of all its parts.

The parts of a box come from several senders, and from several edges where the senders hold the
tensor in several ways. The amaxes of blocks that reach beyond the box come from amax edges.
"""

from dataclasses import dataclass

import numpy as np

from tranship.runtime.addresses import BufferNumbers, Site, scales_of, site
from tranship.runtime.jobs import (
    DTYPE_NUMBER,
    FORMULA_NAMES,
    ITEM_SIZES,
    Batch,
    Fragments,
    JobOp,
    Jobs,
    Table,
    blank_jobs,
    fields,
    pad_dims,
    spans,
    wire_fragments,
)
from tranship.schema.dtypes import DType, widens
from tranship.schema.expression import IntArray, evaluate, parse
from tranship.schema.mesh import table_arrays
from tranship.schema.moves import Moves
from tranship.schema.plan import Edge, Op, PlanSide
from tranship.schema.wire import Lane

_BOX = ("round", "buffer", "offset", "box_start", "box_extent")
"""Fields in which all parts of one receiver box agree, amaxes included."""

_JOB = (*_BOX, "formula", "window_start", "window_extent")
"""Fields in which all values of one job agree."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Parts of blocks that reach a receiver: row `i` of `table` tells where fragment `i` belongs.

    The table repeats the receiver's half for every move. `start` and `extent` are the move's
    region in logical elements or, if `amax` is 1, in blocks.
    """

    table: Table
    fragments: Fragments


def arrivals(
    edge: Edge,
    lane: Lane,
    position: IntArray,
    receiver: PlanSide,
    buffers: BufferNumbers,
    dims: int,
) -> Arrivals:
    """Describe what the moves of `lane` bring; arguments as in `unpack_jobs.unpack_batches`.

    Raises:
        ValueError: the edge asks for what its receiver's half does not have.
    """
    moves, load = lane.moves, lane.payload
    dtype = load.format.values or DType.F32
    if not widens(dtype, DType.F32):
        raise ValueError(f"{edge.tensor!r} is quantized from {dtype}, not exact in float32")
    table = _receiver_rows(edge, site(edge.receiver, moves.receiver, edge.shape, buffers), dims)
    amax = edge.op is Op.AMAX
    start = load.blocks if amax else moves.region.start
    extent = load.block_counts if amax else moves.region.extent
    window_start, window_extent = _window(edge, moves, receiver)
    table["round"], table["edge"], table["amax"] = moves.round, moves.edge, amax
    table["formula"] = FORMULA_NAMES.index(edge.formula) if edge.formula else -1
    table["start"], table["extent"] = pad_dims(start, dims, 0), pad_dims(extent, dims, 1)
    table["window_start"] = pad_dims(window_start, dims, 0)
    table["window_extent"] = pad_dims(window_extent, dims, 1)
    return Arrivals(table, wire_fragments(dtype, position, extent, dims))


def _receiver_rows(edge: Edge, target: Site, dims: int) -> Table:
    scale, scale_buffer, scale_dtype, block = scales_of(target)
    rows = target.instances
    scalars = "round edge amax formula buffer dtype offset scale_buffer scale_dtype scale_offset"
    vectors = (
        "box_start box_extent strides origin block scale_start scale_strides"
        " window_start window_extent start extent"
    )
    table = np.zeros(len(rows.rank), fields(scalars, vectors, dims))
    table["buffer"], table["dtype"] = target.buffer, DTYPE_NUMBER[target.dtype]
    table["scale_buffer"], table["scale_dtype"] = scale_buffer, DTYPE_NUMBER[scale_dtype]
    table["offset"], table["scale_offset"] = rows.offset, scale.offset
    for name, columns, filler in (
        ("box_start", rows.box.start, 0),
        ("box_extent", rows.box.extent, 1),
        ("strides", rows.strides, 0),
        ("origin", rows.origin, 0),
        ("block", np.broadcast_to(block, rows.origin.shape), 1),
        ("scale_start", scale.start, 0),
        ("scale_strides", scale.strides, 0),
    ):
        table[name] = pad_dims(columns, dims, filler)
    return table


def _window(edge: Edge, moves: Moves, receiver: PlanSide) -> tuple[IntArray, IntArray]:
    start, extent = np.zeros_like(moves.region.start), np.zeros_like(moves.region.start)
    if edge.window is not None:
        lookup, environment = table_arrays(receiver.tables), moves.receiver.environment
        for dim in range(start.shape[1]):
            start[:, dim] = evaluate(parse(edge.window.start[dim]), environment, lookup)
            extent[:, dim] = evaluate(parse(edge.window.extent[dim]), environment, lookup)
    return start, extent


def assemble(parts: list[Arrivals], dims: int) -> list[Batch]:
    """Return the jobs that quantize what arrives, in at most one batch.

    Raises:
        ValueError: the parts of a block do not make up a box.
    """
    if not parts:
        return []
    table = np.concatenate([part.table for part in parts])
    fragments = np.concatenate([part.fragments for part in parts])
    values = table[table["amax"] == 0]
    different, group = np.unique(_columns(values, _JOB), axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    count = np.bincount(group, minlength=len(different))
    first = np.cumsum(count) - count
    head = values[order][first]
    start, extent = _hulls(values, group, head)
    jobs = _quantize_jobs(head, start, extent)
    jobs["fragment_first"], jobs["fragment_count"] = first, count
    pieces = fragments[table["amax"] == 0][order]
    pieces["start"] = values["start"][order] - start[group[order]]
    is_amax = table["amax"] == 1
    amaxes = _join_amaxes(jobs, head, start, table[is_amax], fragments[is_amax])
    jobs["amax_first"] += len(pieces)
    return [Batch(head["round"], jobs, np.concatenate([pieces, amaxes]))]


def _columns(table: Table, names: tuple[str, ...]) -> IntArray:
    """Put fields side by side: int64 `[rows, columns]`."""
    fields_ = (table[name] for name in names)
    return np.concatenate([f if f.ndim == 2 else f[:, np.newaxis] for f in fields_], axis=1)


def _hulls(values: Table, group: IntArray, head: Table) -> tuple[IntArray, IntArray]:
    """Return start and extent of the box that the parts of each group make up, `[groups, D]`."""
    start = head["start"].copy()
    stop = start + head["extent"]
    np.minimum.at(start, group, values["start"])
    np.maximum.at(stop, group, values["start"] + values["extent"])
    volume = np.zeros(len(head), dtype=np.int64)
    np.add.at(volume, group, np.prod(values["extent"], axis=1))
    if np.any(volume != np.prod(stop - start, axis=1)):
        edge = int(head["edge"][volume != np.prod(stop - start, axis=1)][0])
        raise ValueError(f"the parts that edge {edge} brings in one round do not make up a box")
    return start, stop - start


def _quantize_jobs(head: Table, start: IntArray, extent: IntArray) -> Jobs:
    """Return one job per row of `head`, which computes and writes box `start`, `extent`."""
    jobs = blank_jobs(len(head), start.shape[1])
    jobs["op"], jobs["edge"], jobs["formula"] = JobOp.QUANTIZE, head["edge"], head["formula"]
    jobs["target"], jobs["target_dtype"] = head["buffer"], head["dtype"]
    elements = head["offset"] + np.sum((start - head["box_start"]) * head["strides"], axis=1)
    jobs["target_offset"] = elements * ITEM_SIZES[head["dtype"]]
    jobs["target_strides"] = head["strides"]
    jobs["extent"] = jobs["inner_extent"] = extent
    jobs["block"] = head["block"]
    first, jobs["phase"] = np.divmod(start - head["origin"], head["block"])
    last = (start + extent - 1 - head["origin"]) // head["block"]
    # A job writes the scale of a block if it writes the block's lowest element in the box.
    lowest = np.maximum(head["origin"] + first * head["block"], head["box_start"])
    skipped = (lowest < start).astype(np.int64)
    jobs["scale_target"], jobs["scale_dtype"] = head["scale_buffer"], head["scale_dtype"]
    steps = (first + skipped - head["scale_start"]) * head["scale_strides"]
    elements = head["scale_offset"] + np.sum(steps, axis=1)
    jobs["scale_offset"] = elements * ITEM_SIZES[head["scale_dtype"]]
    jobs["scale_strides"] = head["scale_strides"]
    jobs["scale_first"] = skipped
    jobs["scale_counts"] = last - first + 1 - skipped
    return jobs


def _join_amaxes(
    jobs: Jobs, head: Table, start: IntArray, table: Table, fragments: Fragments
) -> Fragments:
    """Give every job the amaxes of its box, and return them as the job's own fragments."""
    keys = np.concatenate([_columns(head, _BOX), _columns(table, _BOX)])
    _, number = np.unique(keys, axis=0, return_inverse=True)
    number = number.reshape(-1)
    own, other = number[: len(head)], number[len(head) :]
    order = np.argsort(other, kind="stable")
    low, high = (np.searchsorted(other[order], own, side) for side in ("left", "right"))
    job = np.repeat(np.arange(len(head)), high - low)
    row = order[spans(low, high - low)]
    first = ((start - head["origin"]) // head["block"])[job]
    last = ((start + jobs["extent"] - 1 - head["origin"]) // head["block"])[job]
    begin = np.maximum(table["start"][row], first)
    extent = np.minimum(table["start"][row] + table["extent"][row], last + 1) - begin
    kept = np.all(extent > 0, axis=1)
    found = fragments[row]
    steps = (begin - table["start"][row]) * found["strides"]
    found["offset"] += np.sum(steps, axis=1) * ITEM_SIZES[found["dtype"]]
    found["start"], found["extent"] = begin - first, extent
    jobs["amax_count"] = np.bincount(job[kept], minlength=len(jobs))
    jobs["amax_first"] = np.cumsum(jobs["amax_count"]) - jobs["amax_count"]
    return found[kept]

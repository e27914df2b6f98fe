"""CAST and DEQUANTIZE jobs as tables."""

from collections.abc import Iterator

import numpy as np

from tranship.runtime.jobs import DTYPES, ITEM_SIZES, NOWHERE, Fragments, Jobs, places
from tranship.runtime.kernels.lower_copies import own_fragments
from tranship.runtime.kernels.tables import (
    Addresses,
    Mask,
    Option,
    Strided,
    Table,
    classes,
    common_unit,
    merge_dims,
)
from tranship.schema.dtypes import DType
from tranship.schema.expression import IntArray

_FROM = (DType.F32, DType.BF16, DType.F16, DType.F8E4M3FN, DType.F8E5M2)
_TO = (DType.F32, DType.BF16, DType.F16)


def convertible(jobs: Jobs, fragments: Fragments) -> Mask:
    """Whether the kernels convert what each CAST or DEQUANTIZE job asks for.

    They do not convert to FP8: torch's own conversion, whose bits a cast has, differs from the
    processor's for values that are out of range.
    """
    read = fragments[jobs["fragment_first"]]
    known = np.isin(read["dtype"], [DTYPES.index(dtype) for dtype in _FROM])
    return known & np.isin(jobs["target_dtype"], [DTYPES.index(dtype) for dtype in _TO])


def lower_conversions(jobs: Jobs, fragments: Fragments, at: Addresses) -> Iterator[Table]:
    """Yield the launches of convertible jobs of one fragment each."""
    read = own_fragments(jobs, fragments)
    scaled = read["scale"] != NOWHERE
    for (has_scales,), index in classes(scaled) if len(jobs) else ():
        rows, own = jobs[index], read[index]
        if has_scales:
            # Steps along a dim are not those along its scales: no dims are merged.
            steps = own["strides"][:, ::-1], rows["target_strides"][:, ::-1]
            boxes = Strided(rows["extent"][:, ::-1], steps)
        else:
            boxes = merge_dims(rows["extent"], own["strides"], rows["target_strides"])
        yield from _tables(rows, own, boxes, at)


def _tables(jobs: Jobs, read: Fragments, boxes: Strided, at: Addresses) -> Iterator[Table]:
    sizes, (source_step, target_step) = boxes.sizes, boxes.strides
    source = at(read["source"], read["offset"])
    target = at(jobs["target"], jobs["target_offset"])
    source_item, target_item = ITEM_SIZES[read["dtype"]], ITEM_SIZES[jobs["target_dtype"]]
    scale = np.where(read["scale"] == NOWHERE, -1, read["scale_dtype"])
    aligned = np.ones(len(jobs), bool)
    for address, step, item in (
        (source, source_step, source_item),
        (target, target_step, target_item),
    ):
        every = [step[:, dim] * item for dim in range(1, step.shape[1])]
        aligned &= common_unit(address, *every) == 16
        # The kernel counts steps between rows in 16 elements, which for one byte each is the same.
        aligned &= np.all(step[:, 1:] % 16 == 0, axis=1) & ((step[:, 0] == 1) | (sizes[:, 0] == 1))
    keys = read["dtype"], jobs["target_dtype"], scale, aligned, sizes[:, 1] == 1
    for (value, kind, stored, in_rows, flat), index in classes(*keys):
        height, width = (1, 4096) if flat else (32, 128)
        counts = sizes[index].copy()
        counts[:, 0], counts[:, 1] = -(-counts[:, 0] // width), -(-counts[:, 1] // height)
        part, first = places(counts)
        own = index[part]
        first[:, 0] *= width
        first[:, 1] *= height
        records = np.zeros((len(own), 15), np.int64)
        unit = 16 if in_rows else 1
        records[:, 0] = source[own] + np.sum(first * source_step[own], axis=1) * source_item[own]
        records[:, 1], records[:, 2] = source_step[own, 1] // unit, source_step[own, 0]
        records[:, 3] = target[own] + np.sum(first * target_step[own], axis=1) * target_item[own]
        records[:, 4], records[:, 5] = target_step[own, 1] // unit, target_step[own, 0]
        records[:, 6] = np.minimum(sizes[own, 1] - first[:, 1], height)
        records[:, 7] = np.minimum(sizes[own, 0] - first[:, 0], width)
        if stored >= 0:
            _add_scales(records, read[own], first, at)
        options: dict[str, Option] = {
            "ROWS": height,
            "COLUMNS": width,
            "VALUE": DTYPES[value],
            "VALUE_SCALE": DTYPES[stored] if stored >= 0 else None,
            "TARGET": DTYPES[kind],
            "ROWS_ALIGNED": bool(in_rows),
            "num_warps": 8,
        }
        yield Table("convert_tiles", records, options)


def _add_scales(records: IntArray, read: Fragments, first: IntArray, at: Addresses) -> None:
    """Fill in where the scales of boxes that begin at elements `first` of fragments lie."""
    cell, phase = np.divmod(first[:, ::-1] + read["scale_phase"], read["scale_block"])
    skipped = np.sum(cell * read["scale_strides"], axis=1) * ITEM_SIZES[read["scale_dtype"]]
    records[:, 8] = at(read["scale"], read["scale_offset"] + skipped)
    records[:, 9:11] = read["scale_strides"][:, -2:]
    records[:, 11:13] = read["scale_block"][:, -2:]
    records[:, 13:15] = phase[:, -2:]

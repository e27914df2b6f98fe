"""Where the pieces of a plan and their scales lie in a rank's numbered buffers."""

from dataclasses import dataclass, field

import numpy as np

from tranship.runtime.jobs import DTYPE_NUMBER, Fragments, blank_fragments, pad_dims
from tranship.schema.boxes import Boxes, resolve_block
from tranship.schema.dtypes import ITEM_SIZE, DType
from tranship.schema.expression import IntArray, evaluate
from tranship.schema.manifest import Side
from tranship.schema.mesh import table_arrays
from tranship.schema.moves import Environment, Instances, ScaleMap, address
from tranship.schema.plan import Half, PlanSide
from tranship.schema.records import Ints
from tranship.schema.template import parse_template


@dataclass(frozen=True, slots=True)
class BufferUse:
    """A buffer that a program reads or writes. Tables name it by its position among the uses."""

    name: str
    dtype: DType
    writes: bool


@dataclass(slots=True)
class BufferNumbers:
    """Numbers given to the buffers of one rank, in order of first use."""

    side: Side
    declared: PlanSide
    uses: list[BufferUse] = field(default_factory=list[BufferUse])
    _numbers: dict[str, int] = field(default_factory=dict[str, int])

    def number(self, text: str, dtype: DType, environment: Environment, rows: int) -> IntArray:
        """Number the buffers that the template `text` names, `[rows]`.

        Raises:
            ValueError: the plan gives one buffer two dtypes.
        """
        names, row_name = buffer_names(text, self.declared, environment, rows)
        return np.array([self._add(name, dtype) for name in names], dtype=np.int64)[row_name]

    def _add(self, name: str, dtype: DType) -> int:
        number = self._numbers.setdefault(name, len(self.uses))
        if number == len(self.uses):
            self.uses.append(BufferUse(name, dtype, self.side is Side.RECEIVER))
        if self.uses[number].dtype != dtype:
            raise ValueError(
                f"buffer {name!r} is {self.uses[number].dtype} and {dtype} in one plan"
            )
        return number


def buffer_names(
    text: str, side: PlanSide, environment: Environment, rows: int
) -> tuple[list[str], IntArray]:
    """Fill the template `text` in: the different names, and which one each row has, `[rows]`."""
    template = parse_template(text)
    lookup = table_arrays(side.tables)
    # np.unique wants a column even where the template has no hole.
    values = np.zeros((rows, len(template.holes) + 1), dtype=np.int64)
    for column, hole in enumerate(template.holes):
        values[:, column] = evaluate(hole, environment, lookup)
    different, row_name = np.unique(values, axis=0, return_inverse=True)
    names = [
        "".join(
            part for pair in zip(template.texts, [*map(str, row), ""], strict=True) for part in pair
        )
        for row in different[:, :-1].tolist()
    ]
    return names, row_name.reshape(-1)


@dataclass(frozen=True, slots=True)
class Site:
    """One half of some moves with its memory: buffer numbers are `[n]`, `block` is in elements."""

    dtype: DType
    instances: Instances
    buffer: IntArray
    block: Ints | None
    scale_dtype: DType | None
    scale_buffer: IntArray | None


def site(half: Half, instances: Instances, shape: Ints, buffers: BufferNumbers) -> Site:
    """Number the buffers of `half`, whose rows are `instances`."""
    rows, environment = len(instances.rank), instances.environment
    scale = half.scale
    return Site(
        half.dtype,
        instances,
        buffers.number(half.buffer, half.dtype, environment, rows),
        resolve_block(half.block, shape) if half.block is not None else None,
        scale.dtype if scale else None,
        buffers.number(scale.buffer, scale.dtype, environment, rows) if scale else None,
    )


def value_bytes(place: Site, box: Boxes) -> IntArray:
    """Byte of its buffer, `[n]`, at which the first element of each box lies."""
    return address(place.instances, box.start) * ITEM_SIZE[place.dtype]


def value_strides(place: Site, box: Boxes) -> IntArray:
    """Strides in elements, `[n, d]`, between elements of boxes that lie within the site's."""
    ratio = np.array(box.step, np.int64) // np.array(place.instances.box.step, np.int64)
    return place.instances.strides * ratio.reshape(1, -1)


def scales_of(place: Site) -> tuple[ScaleMap, IntArray, DType, Ints]:
    """Return where a scaled site has its scales: map, buffers, dtype and block.

    Raises:
        ValueError: the site is not scaled.
    """
    scale = place.instances.scale
    buffer, dtype, block = place.scale_buffer, place.scale_dtype, place.block
    if scale is None or buffer is None or dtype is None or block is None:
        raise ValueError("an edge needs scales of a half that has none")
    return scale, buffer, dtype, block


def scale_bytes(place: Site, blocks: IntArray) -> IntArray:
    """Byte of its scale buffer, `[n]`, at which the scale of each block `[n, d]` lies."""
    scale, _, dtype, _ = scales_of(place)
    steps = np.sum((blocks - scale.start) * scale.strides, axis=1, dtype=np.int64)
    return (scale.offset + steps) * ITEM_SIZE[dtype]


def read_values(place: Site, box: Boxes, dims: int, *, scaled: bool) -> Fragments:
    """Return fragments that read all of `box`; with `scaled`, codes together with their scales."""
    fragments = blank_fragments(len(box.start), dims)
    fragments["source"], fragments["dtype"] = place.buffer, DTYPE_NUMBER[place.dtype]
    fragments["offset"] = value_bytes(place, box)
    fragments["strides"] = pad_dims(value_strides(place, box), dims, 0)
    fragments["extent"] = pad_dims(box.extent, dims, 1)
    if scaled:
        _attach_scales(fragments, place, box)
    return fragments


def read_scales(place: Site, blocks: IntArray, counts: IntArray, dims: int) -> Fragments:
    """Return fragments that read the scales of `counts` blocks from block `blocks` on, `[n, d]`."""
    scale, buffer, dtype, _ = scales_of(place)
    fragments = blank_fragments(len(blocks), dims)
    fragments["source"], fragments["dtype"] = buffer, DTYPE_NUMBER[dtype]
    fragments["offset"] = scale_bytes(place, blocks)
    fragments["strides"] = pad_dims(scale.strides, dims, 0)
    fragments["extent"] = pad_dims(counts, dims, 1)
    return fragments


def _attach_scales(fragments: Fragments, place: Site, box: Boxes) -> None:
    scale, buffer, dtype, block = scales_of(place)
    dims = fragments["extent"].shape[1]
    size, step = np.array([block], np.int64), np.array([box.step], np.int64)
    coarse, fine = size % step == 0, step % size == 0
    if np.any(~coarse & ~fine & (box.extent > 1)):
        raise ValueError(f"steps {box.step} and blocks {block} of scaled values do not divide")
    blocks, phase = np.divmod(box.start - place.instances.origin, size)
    # In dims where the steps are whole blocks, each element has a scale of its own.
    strides = scale.strides * np.where(fine, step // size, 1)
    fragments["scale"] = buffer
    fragments["scale_dtype"] = DTYPE_NUMBER[dtype]
    fragments["scale_offset"] = scale_bytes(place, blocks)
    fragments["scale_strides"] = pad_dims(strides, dims, 0)
    fragments["scale_block"] = pad_dims(
        np.broadcast_to(np.where(coarse, size // step, 1), box.extent.shape), dims, 1
    )
    fragments["scale_phase"] = pad_dims(np.where(coarse, phase // step, 0), dims, 0)

"""Which modules are quantized, and codes with their scales in place of plain weights."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from tranship.models.algebra import combine, is_multiple
from tranship.models.boxes import Heap, Held, in_blocks
from tranship.models.memory import Slabs
from tranship.models.model import ModelTensor
from tranship.models.problems import ImpossibleError
from tranship.schema import indexset
from tranship.schema.dtypes import DType
from tranship.schema.expression import Constant, Expression, to_text
from tranship.schema.template import fill_template, parse_template

Box = tuple[tuple[Expression, ...], tuple[Expression, ...], Expression]


@dataclass(frozen=True)
class Scheme:
    """A quantization by blocks: codes, one scale per block, and which scales there may be."""

    name: str
    codes: DType
    scales: DType
    block: tuple[int, int]
    power_of_two: bool


BLOCK_128 = Scheme("fp8-block128", DType.F8E4M3FN, DType.F32, (128, 128), False)

SCHEMES: Mapping[str, Scheme | None] = {
    "bf16": None,
    "fp8-block128": BLOCK_128,
    "fp8-block128-ue8m0": Scheme("fp8-block128-ue8m0", DType.F8E4M3FN, DType.F32, (128, 128), True),
}
"""By the name that the command line takes; None quantizes nothing."""


def is_ignored(module: str, ignored: Iterable[str]) -> bool:
    """Whether a config lists a module as not quantized: by its path, or by a run of its parts."""
    path = f".{module}."
    return any(f".{name.strip('.')}." in path for name in ignored)


Indices = dict[str, str]


def split(heap: Heap, ignored: Sequence[str]) -> tuple[list[Indices], list[Indices]]:
    """Divide a buffer family into those that are quantized and those that are not.

    Returns:
        The index sets of the families of both kinds.

    Raises:
        ImpossibleError: TS758, a buffer would be quantized in part.
    """
    if not ignored:
        return [heap.indices], []
    verdicts = [_skipped(held.tensor, heap.indices, ignored) for held in heap.held]
    if any(other != verdicts[0] for other in verdicts):
        names = ", ".join(held.tensor.module for held in heap.held)
        raise ImpossibleError(
            "TS758",
            f"some but not all of {names} are quantized, and the framework holds them as one",
            "list all of them in modules_to_not_convert, or none",
        )
    yes = [member for member, skipped in verdicts[0].items() if not skipped]
    no = [member for member, skipped in verdicts[0].items() if skipped]
    return index_sets(heap.indices, yes), index_sets(heap.indices, no)


def _skipped(
    tensor: ModelTensor, indices: Mapping[str, str], ignored: Sequence[str]
) -> dict[tuple[int, ...], bool]:
    """Whether each buffer of the family is skipped, by the buffer's own indices.

    What is stacked in one buffer is skipped if its first module is.
    """
    template = parse_template(tensor.module)
    firsts = {name: indexset.parse(text)[0] for name, text in tensor.indices.items()}
    return {
        members: is_ignored(
            fill_template(template, firsts | dict(zip(indices, members, strict=True)), {}), ignored
        )
        for members in product(*(indexset.parse(text) for text in indices.values()))
    }


def index_sets(indices: Mapping[str, str], members: Sequence[tuple[int, ...]]) -> list[Indices]:
    """Write members as index sets: those of the first index that go with the same others."""
    if not members or not indices:
        return [{}] if members else []
    (first, *rest) = indices
    others: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for member in members:
        others[member[0]].append(member[1:])
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = defaultdict(list)
    for member, tails in others.items():
        alike[tuple(tails)].append(member)
    return [
        {first: indexset.to_text(heads)} | tail
        for tails, heads in alike.items()
        for tail in index_sets({name: indices[name] for name in rest}, tails)
    ]


def scale_boxes(
    heap: Heap, slabs: Slabs, scheme: Scheme, *, ragged: bool
) -> tuple[tuple[Box, ...], Slabs]:
    """Find the boxes of the scales, in blocks, and the shape of what holds them.

    Raises:
        ImpossibleError: TS756, a box would cut a block.
    """
    ranges = heap.scope.ranges
    lanes: dict[Expression | None, Expression] = {}
    boxes: list[Box] = []
    for held in heap.held:
        _check_blocks(held, scheme, fused=len(heap.held) > 1 and not ragged)
        cut = [
            in_blocks(s, e, by, ranges)
            for s, e, by in zip(held.start, held.extent, scheme.block, strict=True)
        ]
        start, extent = tuple(one[0] for one in cut), tuple(one[1] for one in cut)
        above = lanes.get(held.slot, Constant(0))
        boxes.append((start, extent, above))
        lanes[held.slot] = combine("+", above, extent[0], ranges)
    rows = next(iter(lanes.values()))
    inner = boxes[0][1][1:]
    return tuple(boxes), Slabs(rows, slabs.slots, slabs.own_dim, inner, None)


def _check_blocks(held: Held, scheme: Scheme, *, fused: bool) -> None:
    for dim, (start, extent, by) in enumerate(
        zip(held.start, held.extent, scheme.block, strict=True)
    ):
        size = held.tensor.shape[dim]
        whole = start == Constant(0) and extent == Constant(size)
        if (whole and not (fused and dim == 0)) or (
            is_multiple(start, by) and is_multiple(extent, by)
        ):
            continue
        what = ("rows", "columns")[dim]
        raise ImpossibleError(
            "TS756",
            f"an FP8 shard of {to_text(extent)} {what} of {held.tensor.name!r} is not made of "
            f"whole blocks of {by}",
            f"its {size} {what} must be divided into multiples of {by}",
        )

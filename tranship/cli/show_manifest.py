"""A manifest for people: its mesh, its tensors, and what lies where in every buffer."""

from collections.abc import Iterator
from math import prod

from rich.text import Text

from tranship.cli.at_rank import rank_of, where_text
from tranship.cli.layout import (
    HEAD,
    NAME,
    PLACE,
    Words,
    count,
    flow,
    index_parts,
    short_name,
    size_text,
    table_text,
)
from tranship.cli.notation import View, box_text, is_whole, region_text
from tranship.cli.show_edge import place_text
from tranship.schema.dtypes import ITEM_SIZE
from tranship.schema.expand import expand
from tranship.schema.expression import Constant, parse
from tranship.schema.manifest import (
    Alias,
    BufferFamily,
    ConstantBuffer,
    Derived,
    IntExpression,
    Kind,
    Manifest,
    Part,
    Piece,
    Scale,
    Scaled,
    TensorFamily,
)
from tranship.schema.moves import grid_size
from tranship.schema.records import contiguous_strides
from tranship.schema.template import parse_template

_INDENT = 2


def manifest_page(manifest: Manifest, width: int) -> Iterator[Text]:
    """Write a manifest."""
    yield from _overview(manifest, width)
    yield Text()
    for family in manifest.tensors:
        yield from _tensor_lines(family, width)
    shapes = _shapes(manifest)
    for family in manifest.buffers:
        ranks = place_text(family.at, _entries(family), manifest.axes, manifest.world_size)
        yield Text()
        yield from _buffer_lines(family, ranks, shapes, width)


def _overview(manifest: Manifest, width: int) -> Iterator[Text]:
    framework = manifest.framework
    software = [f"{framework.name} {framework.version}".strip()] if framework else []
    ranks = count(manifest.world_size, "rank")
    only = [f"of which ranks {manifest.ranks} are described"] if manifest.ranks else []
    yield from flow((f"{manifest.side}  ", HEAD), [*software, ranks, *only], width)
    axes = [f"{axis.name} {axis.size} (stride {axis.stride})" for axis in manifest.axes]
    if axes:
        yield from flow("axes    ", axes, width)
    for name, values in manifest.tables.items():
        yield from flow("table   ", [f"{name}:", *table_text(values)], width)
    members = sum(grid_size(family.indices) for family in manifest.tensors)
    families = count(len(manifest.tensors), "family", "families")
    yield from flow("tensors ", [f"{members:,} of {families}"], width)
    yield from flow("buffers ", [count(len(manifest.buffers), "family", "families")], width)


def _tensor_lines(family: TensorFamily, width: int) -> Iterator[Text]:
    tied = f"tied to {family.tied_to}" if family.tied_to else ""
    parts = [f"{list(family.shape)}", *index_parts(family.indices), tied]
    yield from flow(("tensor  ", HEAD), [(family.name, NAME), *parts], width)


def manifest_rank_page(
    manifest: Manifest, own: Manifest, number: int, width: int
) -> Iterator[Text]:
    """Write what one rank has: `own` is what `manifest_at` leaves of the manifest."""
    rank = rank_of(manifest, number)
    axes = ", ".join(f"{axis.name} {rank.place[axis.name]}" for axis in manifest.axes)
    records = expand(manifest, [number]).buffers
    buffers = [buffer for buffer in records if buffer.role.kind != "alias"]
    size = sum(prod(buffer.shape) * ITEM_SIZE[buffer.dtype] for buffer in buffers)
    parts: list[Words] = [(axes, PLACE), f"{count(len(buffers), 'buffer')} of {size_text(size)}"]
    yield from flow((f"{manifest.side} rank {number}  ", HEAD), parts, width)
    for family in own.buffers:
        ranks = f"rank {number} {where_text(family.at)}".rstrip()
        yield Text()
        yield from _buffer_lines(family, ranks, _shapes(manifest), width)


_Shapes = dict[tuple[str, ...], tuple[int, ...]]


def _shapes(manifest: Manifest) -> _Shapes:
    return {parse_template(family.name).texts: family.shape for family in manifest.tensors}


def _buffer_lines(family: BufferFamily, ranks: str, shapes: _Shapes, width: int) -> Iterator[Text]:
    shape = f"[{', '.join(str(size) for size in family.shape)}]"
    parts: list[Words] = [(family.name, NAME), f"{family.dtype} {shape}"]
    parts += [*index_parts(family.indices), *_nature(family)]
    yield from flow(("buffer  ", HEAD), parts, width)
    yield from flow("on    ", [(ranks, PLACE), *_role(family)], width, _INDENT)
    view = _view(family)
    for piece in family.pieces:
        yield from _piece_lines(piece, view, shapes, width)
    for fill in family.fills:
        region = region_text(fill.offset, fill.sizes, fill.strides, view)
        what = f"no tensor: {fill.reason}" if fill.value is None else f"always {fill.value}"
        yield from flow(
            "", [region, what, where_text(fill.at), *index_parts(fill.indices)], width, 8
        )


def _nature(family: BufferFamily) -> Iterator[str]:
    if family.kind is not Kind.PARAMETER:
        yield family.kind.value
    if family.layout != "row_major":
        yield f"layout {family.layout}"
    match family.encoding:
        case Scaled(block=block, scale=scale, scale_values=accepted):
            sizes = " x ".join(str(size) for size in block)
            only = "" if accepted == "any" else ", powers of two"
            yield f"scaled in blocks of {sizes} by {short_name(scale, family.name)}{only}"
        case Scale(of=of):
            yield f"scales of {short_name(of, family.name)}"
        case _:
            return


def _role(family: BufferFamily) -> Iterator[str]:
    match family.role:
        case Derived(recipe=recipe, inputs=inputs):
            yield f"derived by {recipe} from {', '.join(inputs)}"
        case ConstantBuffer(reason=reason):
            yield f"constant: {reason}"
        case Alias(of=of):
            yield f"alias of {of}"
        case _:
            return


def _entries(family: BufferFamily) -> list[IntExpression]:
    """All expressions in which the ranks of a family may differ."""
    entries = [*family.shape, *(family.strides or ())]
    for piece in family.pieces:
        entries += [*piece.at, *piece.at.values(), *piece.start, *piece.extent, piece.offset]
        entries += [*(piece.strides or ()), *(piece.origin or ())]
    for fill in family.fills:
        entries += [*fill.at, *fill.at.values(), fill.offset, *fill.sizes, *fill.strides]
    return entries


def _strides(family: BufferFamily) -> tuple[IntExpression, ...] | None:
    """The strides of a family's buffers; None if they follow from a shape that varies."""
    if family.strides is not None:
        return family.strides
    shape = [parse(size) for size in family.shape]
    inner = tuple(size.value for size in shape[1:] if isinstance(size, Constant))
    return contiguous_strides((1, *inner)) if len(inner) == len(shape) - 1 else None


def _view(family: BufferFamily) -> View | None:
    strides = [parse(stride) for stride in _strides(family) or ()]
    known = tuple(stride.value for stride in strides if isinstance(stride, Constant))
    if not strides or len(known) < len(strides):
        return None
    sizes = [parse(size) for size in family.shape]
    return View(known, tuple(n.value if isinstance(n, Constant) else None for n in sizes))


def _piece_lines(piece: Piece, view: View | None, shapes: _Shapes, width: int) -> Iterator[Text]:
    dims = len(piece.start)
    strides = piece.strides or (view.strides[len(view.strides) - dims :] if view else None)
    where = region_text(piece.offset, piece.extent, strides, view) if strides else "contiguous"
    shape = shapes.get(parse_template(piece.tensor).texts, ())
    is_value = piece.part is Part.VALUE
    if is_value and len(shape) == dims and is_whole(piece.start, piece.extent, shape):
        box = "all"
    else:
        known = shape if is_value and len(shape) == dims else (None,) * dims
        box = box_text(piece.start, piece.extent, piece.step, known)
    blocks = "" if is_value else "blocks "
    what = f"holds {blocks}{box} of {piece.tensor}"
    parts = [where, what, *_origin(piece), where_text(piece.at), *index_parts(piece.indices)]
    yield from flow("", parts, width, 8)


def _origin(piece: Piece) -> Iterator[str]:
    if piece.origin and any(parse(entry) != Constant(0) for entry in piece.origin):
        yield f"block 0 at [{', '.join(str(entry) for entry in piece.origin)}]"

"""Expansion against a plain one: Python's own `eval`, one member and one rank at a time."""

import re
from collections.abc import Iterator, Mapping
from itertools import product

import pytest
from hypothesis import given, settings

from tests.schema.strategies import manifests
from tranship.schema import indexset
from tranship.schema.dtypes import DType
from tranship.schema.expand import declared_ranks, expand
from tranship.schema.expression import ExpressionError
from tranship.schema.manifest import (
    Alias,
    Axis,
    BufferFamily,
    ConstantBuffer,
    Derived,
    Encoding,
    Fill,
    IntExpression,
    Manifest,
    Piece,
    Role,
    Scale,
    Scaled,
    Side,
    TensorFamily,
)
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    Ints,
    PieceRecord,
    RoleRecord,
    TensorRecord,
)

Names = Mapping[str, object]


def value(expression: IntExpression, names: Names) -> int:
    return int(eval(str(expression), {"min": min, "max": max}, dict(names)))


def values(expressions: tuple[IntExpression, ...], names: Names) -> Ints:
    return tuple(value(expression, names) for expression in expressions)


def filled(template: str, names: Names) -> str:
    return re.sub(r"\{(.*?)\}", lambda hole: str(value(hole[1], names)), template)


def assignments(indices: Mapping[str, str], names: Names) -> Iterator[Names]:
    sets = [indexset.parse(text) for text in indices.values()]
    for members in product(*sets):
        yield {**names, **dict(zip(indices, members, strict=True))}


def holds(at: Mapping[str, IntExpression], names: Names) -> bool:
    return all(names[axis] == value(expression, names) for axis, expression in at.items())


def expected(manifest: Manifest) -> Declaration:
    ranks = declared_ranks(manifest)
    buffers: list[BufferRecord] = []
    for rank in ranks:
        places = {axis.name: rank // axis.stride % axis.size for axis in manifest.axes}
        world: Names = {**manifest.tables, **places, "rank": rank}
        for family in manifest.buffers:
            for names in assignments(family.indices, world):
                if holds(family.at, names):
                    buffers.append(buffer_record(rank, family, names))
    tensors = [
        TensorRecord(filled(family.name, names), family.shape, filled(family.tied_to or "", names))
        for family in manifest.tensors
        for names in assignments(family.indices, manifest.tables)
    ]
    return Declaration(
        manifest.side,
        manifest.world_size,
        ranks,
        manifest.axes,
        tuple(sorted(tensors)),
        tuple(sorted(buffers)),
        manifest.framework,
    )


def buffer_record(rank: int, family: BufferFamily, names: Names) -> BufferRecord:
    shape = values(family.shape, names)
    strides = (max(shape[1], 1), 1) if family.strides is None else values(family.strides, names)
    pieces = [record for piece in family.pieces for record in piece_records(piece, strides, names)]
    fills = [record for fill in family.fills for record in fill_records(fill, names)]
    return BufferRecord(
        rank,
        filled(family.name, names),
        family.dtype,
        shape,
        strides,
        family.kind,
        role_record(family.role, names),
        encoding_record(family.encoding, names),
        family.layout,
        tuple(sorted(pieces)),
        tuple(sorted(fills)),
    )


def piece_records(piece: Piece, buffer_strides: Ints, around: Names) -> Iterator[PieceRecord]:
    for names in assignments(piece.indices, around):
        extent = values(piece.extent, names)
        if holds(piece.at, names) and min(extent) > 0:
            yield PieceRecord(
                filled(piece.tensor, names),
                piece.part,
                values(piece.start, names),
                extent,
                piece.step or (1,),
                value(piece.offset, names),
                buffer_strides[-1:] if piece.strides is None else values(piece.strides, names),
                (0,) if piece.origin is None else values(piece.origin, names),
            )


def fill_records(fill: Fill, around: Names) -> Iterator[FillRecord]:
    for names in assignments(fill.indices, around):
        sizes = values(fill.sizes, names)
        if holds(fill.at, names) and min(sizes) > 0:
            strides = values(fill.strides, names)
            yield FillRecord(value(fill.offset, names), sizes, strides, -1, fill.reason or "")


def role_record(role: Role, names: Names) -> RoleRecord:
    match role:
        case ConstantBuffer():
            return RoleRecord("constant", reason=role.reason)
        case Alias():
            return RoleRecord("alias", of=filled(role.of, names))
        case Derived():
            inputs = tuple(filled(name, names) for name in role.inputs)
            return RoleRecord("derived", role.recipe, inputs)
        case _:
            return RoleRecord()


def encoding_record(encoding: Encoding, names: Names) -> EncodingRecord:
    match encoding:
        case Scaled():
            return EncodingRecord("scaled", (128,), filled(encoding.scale, names), "any")
        case Scale():
            return EncodingRecord("scale", of=filled(encoding.of, names))
        case _:
            return EncodingRecord()


@given(manifests())
@settings(deadline=None)
def test_families_expand_as_member_by_member(manifest: Manifest) -> None:
    assert expand(manifest) == expected(manifest)


@given(manifests())
@settings(deadline=None, max_examples=20)
def test_some_ranks_are_a_part_of_all(manifest: Manifest) -> None:
    whole = expand(manifest)
    for rank in whole.ranks:
        one = expand(manifest, [rank])
        assert one.ranks == (rank,)
        assert one.tensors == whole.tensors
        assert one.buffers == tuple(record for record in whole.buffers if record.rank == rank)


def manifest_of(*buffers: BufferFamily, ranks: str | None = None) -> Manifest:
    return Manifest(
        format="tranship.manifest/1",
        side=Side.SENDER,
        world_size=4,
        ranks=ranks,
        axes=(Axis(name="tp", size=2, stride=1),),
        tensors=(TensorFamily(name="w", shape=(4, 3)), TensorFamily(name="scalar", shape=())),
        buffers=buffers,
    )


def test_ranks_that_the_manifest_does_not_speak_for_are_refused() -> None:
    manifest = manifest_of(ranks="1..2")
    assert expand(manifest).ranks == (1, 2)
    assert expand(manifest, [2]).ranks == (2,)
    with pytest.raises(ValueError, match="does not speak for"):
        expand(manifest, [2, 3])


def test_a_piece_takes_the_last_strides_of_its_buffer() -> None:
    stacked = BufferFamily(
        name="stack",
        dtype=DType.BF16,
        shape=(2, 4, 3),
        strides=(100, 20, 5),
        pieces=(
            Piece(tensor="w", start=(0, 0), extent=(4, 3), offset=100),
            Piece(tensor="scalar", start=(), extent=()),
        ),
    )
    scalar, whole = expand(manifest_of(stacked), [0]).buffers[0].pieces
    assert (whole.strides, whole.step, whole.origin) == ((20, 5), (1, 1), (0, 0))
    assert scalar.strides == ()


def test_a_piece_of_more_dims_than_its_buffer_must_have_strides() -> None:
    flat = BufferFamily(
        name="flat",
        dtype=DType.BF16,
        shape=(12,),
        pieces=(Piece(tensor="w", start=(0, 0), extent=(4, 3)),),
    )
    with pytest.raises(ExpressionError, match="no strides for a piece of w"):
        expand(manifest_of(flat))


def test_empty_pieces_go_and_empty_buffers_stay() -> None:
    shard = BufferFamily(
        name="w",
        dtype=DType.BF16,
        shape=("4 - tp * 4", 3),
        pieces=(Piece(tensor="w", start=("tp * 4", 0), extent=("4 - tp * 4", 3)),),
    )
    first, second = expand(manifest_of(shard), [0, 1]).buffers
    assert (first.shape, len(first.pieces)) == ((4, 3), 1)
    assert (second.shape, second.strides, second.pieces) == ((0, 3), (3, 1), ())


def test_an_expression_without_value_is_an_error() -> None:
    family = BufferFamily(name="w{nothing}", dtype=DType.BF16, shape=(1,))
    with pytest.raises(ExpressionError, match="unknown name 'nothing'"):
        expand(manifest_of(family))

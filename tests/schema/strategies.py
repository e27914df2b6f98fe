"""Hypothesis strategies for declarations without any regularity, and with some."""

from hypothesis import strategies as st

from tranship.schema.dtypes import DType
from tranship.schema.manifest import Axis, Framework, Kind, Part, Side
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    Ints,
    PieceRecord,
    RoleRecord,
    TensorRecord,
    contiguous_strides,
)

NUMBERS = st.sampled_from(["0", "1", "2", "3", "5", "12", "007", "999999999", "4294967296"])
SHAPES = st.sampled_from(
    ["{0}.weight", "layers.{0}.w", "layers.{0}.experts.{1}.w", "w13_{0}", "x{0}"]
)


def name_from(shape: str, first: str, second: str) -> str:
    return shape.format(first, second)


NAMES = st.builds(name_from, SHAPES, NUMBERS, NUMBERS)
DIMS = st.integers(1, 4)
COORDINATES = st.sampled_from([0, 1, 2, 3, 4, 7, 2**40])


def vectors(entries: st.SearchStrategy[int], count: int) -> st.SearchStrategy[Ints]:
    return st.tuples(*[entries] * count)


@st.composite
def axes(draw: st.DrawFn) -> tuple[Axis, ...]:
    names = draw(st.lists(st.sampled_from(["tp", "pp", "layer", "is"]), max_size=3, unique=True))
    return tuple(
        Axis(name=name, size=draw(st.integers(1, 3)), stride=draw(st.integers(1, 4)))
        for name in names
    )


@st.composite
def pieces(draw: st.DrawFn, tensors: tuple[TensorRecord, ...]) -> PieceRecord:
    tensor = draw(st.sampled_from(tensors))
    dims = len(tensor.shape)
    return PieceRecord(
        tensor.name,
        draw(st.sampled_from(Part)),
        draw(vectors(COORDINATES, dims)),
        draw(vectors(DIMS, dims)),
        draw(vectors(st.integers(1, 2), dims)),
        draw(COORDINATES),
        draw(vectors(st.integers(0, 3), dims)),
        draw(vectors(st.integers(0, 1), dims)),
    )


@st.composite
def fills(draw: st.DrawFn) -> FillRecord:
    dims = draw(st.integers(1, 2))
    value, reason = draw(st.sampled_from([(0, ""), (1, ""), (-1, "padding")]))
    sizes, strides = draw(vectors(DIMS, dims)), draw(vectors(DIMS, dims))
    return FillRecord(draw(COORDINATES), sizes, strides, value, reason)


ROLES = st.one_of(
    st.just(RoleRecord()),
    st.just(RoleRecord("constant", reason="why not")),
    st.builds(RoleRecord, st.just("alias"), of=NAMES),
    st.builds(
        RoleRecord,
        st.just("derived"),
        st.just("transpose"),
        st.tuples(NAMES) | st.tuples(NAMES, NAMES),
    ),
)
ENCODINGS = st.one_of(
    st.just(EncodingRecord()),
    st.builds(EncodingRecord, st.just("scaled"), st.just((128, "all")), NAMES, st.just("any")),
    st.builds(EncodingRecord, st.just("scale"), of=NAMES),
)


@st.composite
def buffers(draw: st.DrawFn, rank: int, tensors: tuple[TensorRecord, ...]) -> BufferRecord:
    shape = draw(st.lists(st.integers(0, 3), max_size=2).map(tuple))
    contiguous = st.just(contiguous_strides(shape))
    inside = st.lists(pieces(tensors), max_size=3) if tensors else st.just([])
    return BufferRecord(
        rank,
        draw(NAMES),
        draw(st.sampled_from([DType.BF16, DType.F32])),
        shape,
        draw(contiguous | vectors(st.integers(0, 3), len(shape))),
        draw(st.sampled_from([Kind.PARAMETER, Kind.BUFFER])),
        draw(ROLES),
        draw(ENCODINGS),
        draw(st.sampled_from(["row_major", "swizzled"])),
        tuple(sorted(draw(inside))),
        tuple(sorted(draw(st.lists(fills(), max_size=2)))),
    )


@st.composite
def declarations(draw: st.DrawFn) -> Declaration:
    """Declarations whose fields have nothing to do with one another."""
    world_size = draw(st.integers(1, 6))
    ranks = tuple(sorted(draw(st.sets(st.integers(0, world_size - 1), min_size=1))))
    names = sorted(draw(st.sets(NAMES, max_size=6)))
    tensors = tuple(
        TensorRecord(name, draw(st.sampled_from([(), (4,), (4, 3)])), draw(st.just("") | NAMES))
        for name in names
    )
    records = draw(
        st.lists(
            st.sampled_from(ranks).flatmap(lambda rank: buffers(rank, tensors)),
            max_size=8,
            unique_by=lambda record: (record.rank, record.name),
        )
    )
    return Declaration(
        side=draw(st.sampled_from(Side)),
        world_size=world_size,
        ranks=ranks,
        axes=draw(axes()),
        tensors=tensors,
        buffers=tuple(sorted(records)),
        framework=draw(st.none() | st.just(Framework(name="torch", version="2.13"))),
    )

"""Hypothesis strategies for declarations without any regularity, and with some."""

from typing import TypeVar

from hypothesis import strategies as st

from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    Alias,
    Axis,
    BufferFamily,
    ConstantBuffer,
    Derived,
    Encoding,
    Fill,
    Framework,
    IntExpression,
    Kind,
    Manifest,
    Part,
    Piece,
    Plain,
    Role,
    Scale,
    Scaled,
    Side,
    TensorFamily,
    Transfer,
)
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
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


T = TypeVar("T")


def vectors(entries: st.SearchStrategy[T], count: int) -> st.SearchStrategy[tuple[T, ...]]:
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


INDEX_VALUES = [0, 1, 2, "layer", "layer // 2", "layer % 2", "local[layer]", "max(0, 2 - layer)"]
RANK_VALUES = [
    *INDEX_VALUES,
    "tp",
    "pp",
    "rank",
    "tp * 3 + layer",
    "4 - tp * 2",
    "min(2, 1 + rank)",
]
AXES = (Axis(name="tp", size=2, stride=1), Axis(name="pp", size=2, stride=2))
SETS = st.sampled_from(["0", "0..3", "1..3", "0,3", "0..4:2"])


def expressions(count: int, own: list[str]) -> st.SearchStrategy[tuple[IntExpression, ...]]:
    """Values that a field may have, own indices of a piece or fill included."""
    return vectors(st.sampled_from([*RANK_VALUES, *own, *(f"{name} * 2" for name in own)]), count)


def at_values(own: list[str]) -> st.SearchStrategy[dict[str, IntExpression]]:
    values = st.sampled_from([*INDEX_VALUES, *own])
    return st.dictionaries(st.sampled_from(["tp", "pp", "rank"]), values, max_size=2)


@st.composite
def families(draw: st.DrawFn, number: int) -> BufferFamily:
    """A family of buffers `NUMBER.LAYER`, `NUMBER.LAYER.EXPERT`, of one dim."""
    has_expert = draw(st.booleans())
    indices = {"layer": draw(SETS)} | ({"expert": draw(SETS)} if has_expert else {})
    own = ["expert"] if has_expert else []
    inner = draw(st.sampled_from([[], ["group"]]))
    tensor = draw(st.sampled_from(["t.{layer}.w", "t.w", *(f"e.{{{name}}}.w" for name in inner)]))
    piece = Piece(
        tensor=tensor,
        part=draw(st.sampled_from(Part)),
        indices={name: draw(SETS) for name in inner},
        at=draw(at_values(own + inner)),
        start=draw(expressions(1, own + inner)),
        extent=draw(expressions(1, own + inner)),
        step=draw(st.none() | st.just((2,))),
        offset=draw(expressions(1, own + inner))[0],
        strides=draw(st.none() | expressions(1, own + inner)),
        origin=draw(st.none() | expressions(1, own + inner)),
    )
    fill = Fill(
        indices={name: draw(SETS) for name in inner},
        at=draw(at_values(own + inner)),
        offset=draw(expressions(1, own + inner))[0],
        sizes=draw(expressions(2, own + inner)),
        strides=draw(expressions(2, own + inner)),
        reason="padding",
    )
    name = f"{number}.{{layer}}.{{expert}}.w" if has_expert else f"{number}.{{layer}}.w"
    roles: list[Role] = [
        Transfer(),
        ConstantBuffer(kind="constant", reason="never changes"),
        Alias(kind="alias", of="1.{local[layer]}.w"),
        Derived(kind="derived", recipe="transpose", inputs=("1.{layer}.w", "2.{layer % 2}.w")),
    ]
    encodings: list[Encoding] = [
        Plain(),
        Scaled(kind="scaled", block=(128,), scale="1.{layer}.w"),
        Scale(kind="scale", of="1.{layer + 1}.w"),
    ]
    return BufferFamily(
        name=name,
        indices=indices,
        at=draw(at_values(own)),
        dtype=DType.BF16,
        shape=draw(expressions(2, own)),
        strides=draw(st.none() | expressions(2, own)),
        kind=draw(st.sampled_from(Kind)),
        role=draw(st.sampled_from(roles)),
        encoding=draw(st.sampled_from(encodings)),
        pieces=tuple(draw(st.lists(st.just(piece), max_size=1))),
        fills=tuple(draw(st.lists(st.just(fill), max_size=1))),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Manifests of a few families, with expressions of every kind."""
    count = draw(st.integers(1, 3))
    return Manifest(
        format="tranship.manifest/1",
        side=draw(st.sampled_from(Side)),
        world_size=4,
        ranks=draw(st.none() | st.sampled_from(["0..3", "1", "0,2..3"])),
        axes=AXES,
        tables={"local": (0, 1, 0, 1, 2)},
        tensors=(
            TensorFamily(name="t.{layer}.w", indices={"layer": "0..4"}, shape=(8,)),
            TensorFamily(name="e.{group}.w", indices={"group": "0..4"}, shape=(8,), tied_to="t.w"),
            TensorFamily(name="t.w", shape=(8,)),
        ),
        buffers=tuple(draw(families(number)) for number in range(count)),
    )

"""Random pairs of manifests with many index values: layers in uneven stages, experts by the dozen.

Where `schema/testing` draws any transfer of a few layers, this draws few kinds of transfers with
enough layers, experts and ranks that most of them are alike, and some only look so.
"""

from dataclasses import dataclass
from typing import Literal

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.compiler.verdicts import Transfer
from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    Axis,
    BufferFamily,
    Derived,
    Fill,
    IntExpression,
    Manifest,
    Part,
    Piece,
    Scale,
    Scaled,
    Side,
    TensorFamily,
)
from tranship.schema.placement import Placement, Seat
from tranship.schema.transfer import Options

LAYERS, EXPERTS = 12, 12
At = dict[str, IntExpression]


@dataclass(frozen=True)
class Tensors:
    """Which tensors there are: `literal` of the layers has no index, experts are in `sparse`."""

    literal: int | None
    sparse: str | None

    @property
    def counted(self) -> str:
        """The layers whose attention has an index."""
        if self.literal is None:
            return f"0..{LAYERS - 1}"
        return ",".join(
            text
            for text in (_span(0, self.literal - 1), _span(self.literal + 1, LAYERS - 1))
            if text
        )

    def families(self) -> tuple[TensorFamily, ...]:
        """All tensors, for either side."""
        layers = {"layer": self.counted}
        found = [
            TensorFamily(name="layers.{layer}.q", indices=layers, shape=(8, 6)),
            TensorFamily(
                name="layers.{layer}.norm", indices={"layer": f"0..{LAYERS - 1}"}, shape=(6,)
            ),
            TensorFamily(name="head", shape=(40, 12)),
        ]
        if self.literal is not None:
            found.append(TensorFamily(name=f"layers.{self.literal}.q", shape=(8, 6)))
        if self.sparse is not None:
            every = {"layer": self.sparse, "expert": f"0..{EXPERTS - 1}"}
            found.append(
                TensorFamily(name="layers.{layer}.e.{expert}.up", indices=every, shape=(4, 6))
            )
        return tuple(found)


def _span(first: int, last: int) -> str:
    return "" if last < first else str(first) if first == last else f"{first}..{last}"


@dataclass(frozen=True)
class Layout:
    """One side: `stage` of every layer, `inner` ranks in a stage, of `copies` of the model.

    `views` divides the inner ranks for attention in another way than for experts; `numbering` is
    how layers and experts are numbered in names. `quantized` buffers have scales. `wide` spreads
    experts over the ranks of all stages; `lone` norms are on the first rank of their stage alone.
    """

    stage: tuple[int, ...]
    inner: int
    copies: int
    views: bool
    numbering: Literal["global", "local"]
    quantized: bool
    wide: bool
    lone: bool
    stacked: bool
    derived: bool

    @property
    def stages(self) -> int:
        """Number of pipeline stages."""
        return max(self.stage) + 1

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.stages * self.inner * self.copies

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Stages of inner ranks, and views of the same ranks."""
        spread = self.inner * (self.stages if self.wide else 1)
        found = [
            Axis(name="pp", size=self.stages, stride=self.inner),
            Axis(name="tp", size=self.inner, stride=1),
            Axis(name="ep", size=spread, stride=1),
        ]
        if self.copies > 1:
            found.append(Axis(name="dp", size=self.copies, stride=self.stages * self.inner))
        if self.views and self.inner % 2 == 0:
            found.append(Axis(name="atp", size=2, stride=1))
            found.append(Axis(name="adp", size=self.inner // 2, stride=2))
        return tuple(found)

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """The stage of every layer, and its number there."""
        local = tuple(self.stage[:layer].count(stage) for layer, stage in enumerate(self.stage))
        return {"stage": self.stage, "local": local}

    def layer(self) -> str:
        """How a layer is called in buffers."""
        return "{local[layer]}" if self.numbering == "local" else "{layer}"

    def at(self) -> At:
        """Where a layer is."""
        return {"pp": "stage[layer]"} if self.stages > 1 else {}


@st.composite
def layouts(draw: DrawFn, side: Side) -> Layout:
    """Draw one side."""
    stages = draw(st.integers(1, 4))
    if draw(st.booleans()):
        cuts = sorted(
            draw(
                st.lists(
                    st.integers(1, LAYERS - 1),
                    min_size=stages - 1,
                    max_size=stages - 1,
                    unique=True,
                )
            )
        )
        stage = tuple(sum(layer >= cut for cut in cuts) for layer in range(LAYERS))
    else:
        order = draw(st.permutations(range(stages)))
        stage = tuple(order[layer % stages] for layer in range(LAYERS))
    inner = draw(st.sampled_from([1, 2, 3, 4]))
    receives = side is Side.RECEIVER
    return Layout(
        stage=stage,
        inner=inner,
        copies=draw(st.sampled_from([1, 1, 2])) if inner * stages < 9 else 1,
        views=draw(st.booleans()),
        numbering=draw(st.sampled_from(["global", "local"])),
        quantized=receives and draw(st.booleans()),
        wide=draw(st.booleans()) and stages * inner in (1, 2, 3, 4, 6, 12),
        lone=draw(st.booleans()),
        stacked=receives and draw(st.booleans()),
        derived=receives and draw(st.booleans()),
    )


@st.composite
def large_pairs(draw: DrawFn) -> Transfer:
    """Draw a transfer that compiles."""
    tensors = Tensors(
        draw(st.none() | st.integers(0, LAYERS - 1)),
        draw(st.sampled_from([None, "3..11", "2..3,7..8"])),
    )
    sender, receiver = (draw(layouts(side)) for side in Side)
    placement = None
    if draw(st.booleans()):
        seat = Seat(host=f"rank // {draw(st.integers(1, 4))}", device="rank")
        placement = Placement(format="tranship.placement/1", sender=seat, receiver=seat)
    staging = draw(st.sampled_from([4096, 1 << 14, 1 << 20]))
    return Transfer(
        _manifest(Side.SENDER, sender, tensors),
        _manifest(Side.RECEIVER, receiver, tensors),
        Options(staging_bytes=staging),
        placement=placement,
    )


def _manifest(side: Side, layout: Layout, tensors: Tensors) -> Manifest:
    buffers = [*_attention(layout, tensors), _norm(layout), _head(layout)]
    if tensors.sparse is not None:
        buffers += _experts(layout, tensors.sparse)
    if layout.derived:
        buffers.append(_derived(layout, tensors))
    return Manifest(
        format="tranship.manifest/1",
        side=side,
        world_size=layout.world_size,
        axes=layout.axes,
        tables=layout.tables,
        tensors=tensors.families(),
        buffers=tuple(buffers),
    )


def _attention(layout: Layout, tensors: Tensors) -> list[BufferFamily]:
    """Rows over tp (unevenly over three), or over a view of the same ranks."""
    views = layout.views and layout.inner % 2 == 0
    axis, size = ("atp", 2) if views else ("tp", layout.inner)
    most = -(-8 // size)
    start = f"{axis} * {most}" if size > 1 else 0
    rows = f"max(min({most}, 8 - {axis} * {most}), 0)" if 8 % size else most
    found: list[BufferFamily] = []
    sets: list[tuple[str, dict[str, str], At]] = [
        ("layers.{layer}.q", {"layer": tensors.counted}, layout.at())
    ]
    if tensors.literal is not None:
        at: At = {"pp": layout.stage[tensors.literal]} if layout.stages > 1 else {}
        sets.append((f"layers.{tensors.literal}.q", {}, at))
    for tensor, indices, at in sets:
        own = layout.tables["local"][tensors.literal or 0]
        number = (
            layout.layer()
            if indices
            else str(own if layout.numbering == "local" else tensors.literal)
        )
        name = f"layers.{number}.q"
        found += _maybe_scaled(layout, name, tensor, indices, at, (rows, 6), start)
    return found


def _maybe_scaled(
    layout: Layout,
    name: str,
    tensor: str,
    indices: dict[str, str],
    at: At,
    shape: tuple[IntExpression, int],
    start: IntExpression,
) -> list[BufferFamily]:
    """A buffer of rows; quantized in blocks of 2 by 3, which uneven senders cut."""
    piece = Piece(tensor=tensor, start=(start, 0), extent=shape)
    common = {"indices": indices, "at": at, "shape": shape}
    whole_blocks = all(isinstance(entry, int) and entry % 2 == 0 for entry in shape)
    if not (layout.quantized and whole_blocks):
        plain = {"name": name, "dtype": DType.BF16, "pieces": (piece,), **common}
        return [BufferFamily.model_validate(plain)]
    rows = shape[0]
    assert isinstance(rows, int)
    block_start = f"{start} // 2" if isinstance(start, str) else start // 2
    scales = Piece(tensor=tensor, part=Part.SCALE, start=(block_start, 0), extent=(rows // 2, 2))
    scale = f"{name}_scale_inv"
    values = {
        **common,
        "name": name,
        "dtype": DType.F8E4M3FN,
        "encoding": Scaled(kind="scaled", block=(2, 3), scale=scale),
        "pieces": (piece,),
    }
    held = {
        **common,
        "name": scale,
        "dtype": DType.F32,
        "shape": (rows // 2, 2),
        "encoding": Scale(kind="scale", of=name),
        "pieces": (scales,),
    }
    return [BufferFamily.model_validate(values), BufferFamily.model_validate(held)]


def _norm(layout: Layout) -> BufferFamily:
    """Every rank of the stage holds it, or only the first of the first copy."""
    at: At = {"rank": f"stage[layer] * {layout.inner}"} if layout.lone else layout.at()
    return BufferFamily(
        name=f"layers.{layout.layer()}.norm",
        indices={"layer": f"0..{LAYERS - 1}"},
        at=at,
        dtype=DType.BF16,
        shape=(6,),
        pieces=(Piece(tensor="layers.{layer}.norm", start=(0,), extent=(6,)),),
    )


def _head(layout: Layout) -> BufferFamily:
    """Columns over tp, with two padded rows."""
    width = 12 // layout.inner
    start = f"tp * {width}" if layout.inner > 1 else 0
    return BufferFamily(
        name="head",
        dtype=DType.BF16,
        shape=(42, width),
        pieces=(Piece(tensor="head", start=(0, start), extent=(40, width)),),
        fills=(Fill(offset=40 * width, sizes=(2, width), strides=(width, 1), value=0),),
    )


def _experts(layout: Layout, sparse: str) -> list[BufferFamily]:
    """One buffer for every expert, or a stack of a rank's experts for every layer."""
    size = layout.inner * (layout.stages if layout.wide else 1)
    count = EXPERTS // size
    at: At = {"ep": f"expert // {count}"} if size > 1 else {}
    stage = {} if layout.wide else layout.at()
    tensor, every = "layers.{layer}.e.{expert}.up", {"expert": f"0..{EXPERTS - 1}"}
    # Stages that hold no sparse layer, or all of them: layers keep their global numbers then.
    layer = "{layer}" if layout.wide else layout.layer()
    if layout.stacked:
        piece = Piece(
            tensor=tensor,
            indices=every,
            at=at,
            start=(0, 0),
            extent=(4, 6),
            offset=f"expert % {count} * 24",
            strides=(6, 1),
        )
        stack = BufferFamily(
            name=f"layers.{layer}.w13",
            indices={"layer": sparse},
            at=stage,
            dtype=DType.BF16,
            shape=(count, 4, 6),
            pieces=(piece,),
        )
        return [stack]
    expert = "{expert}" if layout.numbering == "global" else f"{{expert % {count}}}"
    name = f"layers.{layer}.e.{expert}.up"
    indices = {"layer": sparse, **every}
    return _maybe_scaled(layout, name, tensor, indices, {**stage, **at}, (4, 6), 0)


def _derived(layout: Layout, tensors: Tensors) -> BufferFamily:
    """Something that a recipe makes of the attention and the norm of a layer."""
    lone: At = {"rank": f"stage[layer] * {layout.inner}"} if layout.lone else layout.at()
    layer = layout.layer()
    inputs = (f"layers.{layer}.q", f"layers.{layer}.norm")
    return BufferFamily(
        name=f"layers.{layer}.made",
        indices={"layer": tensors.counted},
        at=lone,
        dtype=DType.BF16,
        shape=(4,),
        role=Derived(kind="derived", recipe="absorb", inputs=inputs),
    )

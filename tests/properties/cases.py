"""Random transfers: tensors, and on both sides meshes, shardings, storage and encodings.

A case is data only. Shards are those of torch DTensor; `build.py` turns them into records.
"""

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tranship.schema.dtypes import DType
from tranship.schema.records import BlockShape

SIZES = (0, 1, 2, 3, 5, 6, 8, 12)
BLOCKS: dict[int, tuple[BlockShape, ...]] = {
    1: ((4,), (1,), ("all",)),
    2: ((2, 2), (4, 4), (3, 2), (1, "all"), ("all", "all"), ("all", 2), (1, 4)),
    3: ((1, 4, 4), (1, 2, "all"), ("all", "all", "all")),
}


@dataclass(frozen=True)
class Tensor:
    """Logical tensors `name` with `{layer}` for each layer, all of one shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Encoding:
    """`block` None is plain; else codes of `dtype` with scales of `scale_dtype`."""

    dtype: DType
    block: BlockShape | None = None
    scale_dtype: DType = DType.F32


@dataclass(frozen=True)
class Holding:
    """How one side holds one tensor.

    `placements` has an entry per mesh axis: a dim to shard, "strided" (dim 0, every n-th row), or
    None to replicate. `storage` is one of "plain", "transposed", "padded", "halves" (the shard's
    first dim in two pieces, in reverse order in the buffer).
    """

    placements: tuple[int | str | None, ...]
    storage: str
    encoding: Encoding


@dataclass(frozen=True)
class SideCase:
    """One side: mesh axes behind the pipeline axis, each layer's stage, and every tensor's holding.

    `fused` puts all tensors of equal trailing shape, dtype and encoding in one buffer per layer.
    """

    stages: int
    stage_of: tuple[int, ...]
    mesh: tuple[int, ...]
    holdings: tuple[Holding, ...]
    fused: bool

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        size = self.stages
        for axis in self.mesh:
            size *= axis
        return size


@dataclass(frozen=True)
class Case:
    """A whole transfer."""

    tensors: tuple[Tensor, ...]
    layers: int
    sender: SideCase
    receiver: SideCase
    formula: str
    staging_bytes: int
    seed: int


@st.composite
def cases(draw: DrawFn) -> Case:
    """Draw a transfer that the compiler must accept."""
    count = draw(st.integers(1, 3))
    tensors = tuple(Tensor(f"t{n}", draw(shapes())) for n in range(count))
    layers = draw(st.integers(1, 3))
    sender_codes = [draw(encodings(len(t.shape))) for t in tensors]
    receiver_codes = [
        draw(answers(e, len(t.shape))) for e, t in zip(sender_codes, tensors, strict=True)
    ]
    pairs = zip(sender_codes, receiver_codes, strict=True)
    plain = [sender.block is None and receiver.block is None for sender, receiver in pairs]
    formula = draw(st.sampled_from(["divide", "reciprocal", "power_of_two"]))
    return Case(
        tensors,
        layers,
        draw(sides(tensors, layers, sender_codes, plain)),
        draw(sides(tensors, layers, receiver_codes, plain)),
        formula,
        draw(st.sampled_from([1 << 30, 1 << 13, 1 << 12])),
        draw(st.integers(0, 2**16)),
    )


@st.composite
def shapes(draw: DrawFn) -> tuple[int, ...]:
    """Shapes of no to three dims, with zeros and primes among the sizes."""
    dims = draw(st.sampled_from([0, 1, 2, 2, 2, 2, 3]))
    return tuple(draw(st.sampled_from(SIZES)) for _ in range(dims))


@st.composite
def encodings(draw: DrawFn, dims: int) -> Encoding:
    """What a sender may hold."""
    if dims and draw(st.integers(0, 4)) == 0:
        return Encoding(DType.F8E4M3FN, draw(st.sampled_from(BLOCKS[dims])))
    return Encoding(draw(st.sampled_from([DType.BF16, DType.BF16, DType.F32, DType.F16])))


@st.composite
def answers(draw: DrawFn, sender: Encoding, dims: int) -> Encoding:
    """What a receiver may want of such a sender."""
    choice = draw(st.integers(0, 5))
    if dims == 0 or choice == 0:
        return sender if sender.block is None or choice else Encoding(DType.BF16)
    if choice == 1:
        return Encoding(draw(st.sampled_from([DType.F32, DType.BF16])))
    if choice == 2 and sender.block is not None:
        return sender
    scale = draw(st.sampled_from([DType.F32, DType.F32, DType.BF16, DType.F8E8M0FNU]))
    return Encoding(DType.F8E4M3FN, draw(st.sampled_from(BLOCKS[dims])), scale)


@st.composite
def sides(
    draw: DrawFn,
    tensors: tuple[Tensor, ...],
    layers: int,
    encodings: list[Encoding],
    plain: list[bool],
) -> SideCase:
    """One side's mesh and holdings."""
    stages = draw(st.integers(1, 2))
    stage_of = tuple(draw(st.integers(0, stages - 1)) for _ in range(layers))
    mesh = tuple(draw(st.lists(st.sampled_from([1, 2, 2, 3]), min_size=1, max_size=2)))
    held = tuple(
        draw(holdings(tensor, mesh, encoding, strided=strided))
        for tensor, encoding, strided in zip(tensors, encodings, plain, strict=True)
    )
    return SideCase(stages, stage_of, mesh, held, draw(st.booleans()))


@st.composite
def holdings(
    draw: DrawFn, tensor: Tensor, mesh: tuple[int, ...], encoding: Encoding, *, strided: bool
) -> Holding:
    """How one tensor lies on one side; `strided` only where neither side is scaled."""
    dims = len(tensor.shape)
    choices: list[int | str | None] = [None, *range(dims), *([0] if dims else [])]
    placements = [draw(st.sampled_from(choices)) for _ in mesh]
    if strided and dims and len(mesh) == 1 and draw(st.integers(0, 5)) == 0:
        placements[0] = "strided"
    storages = ["plain", "plain", "padded", "halves"] + (["transposed"] if dims == 2 else [])
    storage = draw(st.sampled_from(storages)) if dims else "plain"
    return Holding(tuple(placements), storage, encoding)

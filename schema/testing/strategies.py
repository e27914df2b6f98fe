"""Strategies for cases.

Hypothesis shrinks towards what takes fewest draws, and then towards what comes first. So the
simplest comes first, and something simpler never takes more draws than something less simple.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tranship.schema.dtypes import DType
from tranship.schema.formulas import FormulaName
from tranship.schema.records import BlockShape, Ints
from tranship.schema.testing.cases import (
    Case,
    Encoding,
    Extra,
    Holding,
    Limits,
    LogicalTensor,
    Placement,
    SideCase,
    Storage,
)

FIRST = "t0"
"""The name of the first tensor, to which others may be tied."""

SIZES = (1, 2, 3, 5, 6, 8, 12, 0)
BLOCKS: dict[int, tuple[BlockShape, ...]] = {
    1: ((4,), (1,), ("all",)),
    2: ((2, 2), (4, 4), (3, 2), (1, "all"), ("all", "all"), ("all", 2), (1, 4)),
    3: ((1, 4, 4), (1, 2, "all"), ("all", "all", "all")),
}
FORMULAS: tuple[FormulaName, ...] = ("divide", "reciprocal", "power_of_two")
STORAGES: tuple[Storage, ...] = ("plain", "plain", "padded", "halves", "transposed")
ENOUGH_STAGING = (1 << 30, 1 << 16)
"""Staging memory in bytes that every case fits; with the smaller one it may take many rounds."""


@dataclass(frozen=True)
class _Frame:
    """What a side is besides its tensors."""

    stages: int
    stage_of: Ints
    mesh: Ints
    fused: bool
    extras: tuple[Extra, ...]

    def side(self, holdings: Iterable[Holding]) -> SideCase:
        """Return the side that holds its tensors so."""
        return SideCase(
            self.stages, self.stage_of, self.mesh, tuple(holdings), self.fused, self.extras
        )


@dataclass(frozen=True)
class _Both:
    """A tensor and how either side holds it."""

    tensor: LogicalTensor
    sender: Holding
    receiver: Holding


@st.composite
def cases(
    draw: DrawFn, limits: Limits | None = None, staging: Sequence[int] = ENOUGH_STAGING
) -> Case:
    """Draw a transfer that the compiler must accept with the policy of `policy_of`.

    Args:
        draw: Given by Hypothesis.
        limits: How large either side may be.
        staging: Sizes of staging memory to choose from, in bytes.
    """
    limits = limits or Limits()
    layers = draw(st.integers(1, limits.layers))
    sender = draw(_frames(layers, limits, ("alias", "constant")))
    receiver = draw(_frames(layers, limits, ("derived", "alias", "constant")))
    meshes = sender.mesh, receiver.mesh
    formula = draw(st.sampled_from(FORMULAS))
    budget, seed = draw(st.sampled_from(staging)), draw(st.integers(0, 2**16))
    has_unused = draw(_seldom(5))
    first = draw(_held_tensors(meshes))
    more = _held_tensors(meshes) | _held_tensors(meshes) | _held_tensors(meshes, first)
    held = [first, *draw(st.lists(more, max_size=limits.tensors - 1))]
    return Case(
        tuple(replace(one.tensor, name=f"t{n}") for n, one in enumerate(held)),
        layers,
        sender.side(one.sender for one in held),
        receiver.side(one.receiver for one in held),
        formula,
        budget,
        seed,
        has_unused,
    )


@st.composite
def _frames(draw: DrawFn, layers: int, limits: Limits, extras: tuple[Extra, ...]) -> _Frame:
    stages = draw(st.integers(1, min(2, limits.ranks)))
    digits = draw(st.integers(0, stages**limits.layers - 1))
    stage_of = tuple(digits // stages**layer % stages for layer in range(layers))
    mesh = draw(mesh_sizes(limits.ranks // stages))
    chosen = draw(st.lists(st.sampled_from(extras), max_size=2, unique=True))
    return _Frame(stages, stage_of, mesh, draw(st.booleans()), tuple(chosen))


@st.composite
def _held_tensors(draw: DrawFn, meshes: tuple[Ints, Ints], target: _Both | None = None) -> _Both:
    """A tensor of any name; with `target` tied to it, and then the sender holds only that."""
    shape = target.tensor.shape if target else draw(_shapes())
    tensor = LogicalTensor("", shape, FIRST if target else "")
    dims = len(tensor.shape)
    sender = target.sender.encoding if target else draw(_encodings(dims))
    receiver = draw(_answers(sender, dims))
    if target and "strided" in target.sender.placements:
        receiver = target.receiver.encoding  # blocks are of neighbours
    may_stride = sender.block is None and receiver.block is None
    holdings = [
        draw(_holdings(tensor, mesh, encoding, strided=may_stride))
        for mesh, encoding in zip(meshes, (sender, receiver), strict=True)
    ]
    return _Both(tensor, *holdings)


@st.composite
def mesh_sizes(draw: DrawFn, ranks: int) -> Ints:
    """Draw the sizes of one or two axes, of at most `ranks` ranks in all."""
    sizes: list[int] = []
    for _ in range(draw(st.integers(1, 2))):
        size = draw(st.sampled_from([1, 2, 2, 3, 4]))
        sizes.append(size if size * prod(sizes) <= ranks else 1)
    return tuple(sizes)


def _seldom(of: int) -> st.SearchStrategy[bool]:
    return st.integers(0, of - 1).map(lambda number: number == of - 1)


@st.composite
def _shapes(draw: DrawFn) -> Ints:
    """Shapes of no to three dims, with zeros and primes among the sizes."""
    dims = draw(st.sampled_from([1, 2, 2, 2, 2, 3, 0]))
    return tuple(draw(st.sampled_from(SIZES)) for _ in range(max(dims, 1)))[:dims]


@st.composite
def _encodings(draw: DrawFn, dims: int) -> Encoding:
    """What a sender may hold of a tensor of `dims` dims."""
    if draw(_seldom(5)) and dims:
        return Encoding(DType.F8E4M3FN, draw(st.sampled_from(BLOCKS[dims])))
    return Encoding(draw(st.sampled_from([DType.BF16, DType.BF16, DType.F32, DType.F16])))


@st.composite
def _answers(draw: DrawFn, sender: Encoding, dims: int) -> Encoding:
    """What a receiver may want of such a sender: the same, another float, or other codes."""
    choice = draw(st.sampled_from(["same", "float", "codes", "codes", "codes"]))
    if choice == "same":
        return sender
    if choice == "float" or dims == 0:
        return Encoding(draw(st.sampled_from([DType.BF16, DType.F32])))
    scale = draw(st.sampled_from([DType.F32, DType.F32, DType.BF16, DType.F8E8M0FNU]))
    return Encoding(DType.F8E4M3FN, draw(st.sampled_from(BLOCKS[dims])), scale)


@st.composite
def _holdings(
    draw: DrawFn, tensor: LogicalTensor, mesh: Ints, encoding: Encoding, *, strided: bool
) -> Holding:
    """How one tensor lies on one side; `strided` only where neither side is scaled."""
    dims = len(tensor.shape)
    choices: list[Placement] = [None, *range(dims), 0 if dims else None]
    placements: list[Placement] = [draw(st.sampled_from(choices)) for _ in mesh]
    joint = draw(_seldom(4)) and len(mesh) > 1
    placements = placements[:1] if joint else placements
    if draw(_seldom(6)) and strided and dims and len(placements) == 1:
        placements[0] = "strided"
    storages = STORAGES if dims == 2 else STORAGES[:-1]
    storage = draw(st.sampled_from(storages))
    return Holding(tuple(placements), storage if dims else "plain", encoding, joint)

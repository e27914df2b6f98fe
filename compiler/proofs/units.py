"""Divide a plan and its manifests into units that share nothing, each narrowed to one of a kind.

A unit is all families, edges, fills and steps whose names may be the same. What is proved of one
is proved without looking at the others. In a unit, index values and ranks that no expression tells
apart are alike (`schema/alike.py`), and whatever holds of one of them holds of all: so the proofs
look at one of each kind. Two things that differ between alike values are not read by these proofs,
or enter as values of their own:

- Names of buffers only say which is meant. Linked names (`links.py`) agree for all values or none,
  since a manifest gives no two buffers of a rank one name.
- The turn of an edge says which of several equal holders sends. Bytes are added up for all ranks,
  and a unit in which the holders differ otherwise (`senders.py`) is not narrowed.
- Rounds are compared within a unit only where receivers quantize, or recipes read what is written.
  Where all edges of a unit have one expression for their round, they always agree.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tranship.compiler.proofs.links import Links, Node, Scope, half_scope, link, scope_of
from tranship.compiler.proofs.senders import senders_matter
from tranship.compiler.proofs.values import clashes, half_values, piece_values
from tranship.schema.alike import Kinds, Reader, kinds, reader
from tranship.schema.expression import IntArray
from tranship.schema.manifest import (
    BufferFamily,
    Fill,
    Manifest,
    Piece,
    Side,
    TensorFamily,
)
from tranship.schema.mesh import table_arrays
from tranship.schema.plan import (
    DerivedStep,
    Edge,
    FillEdge,
    Op,
    Place,
    PlanSide,
    TransferPlan,
)
from tranship.schema.rules.plans import plan_entries


@dataclass(frozen=True)
class Unit:
    """Part of a problem, narrowed: manifests, numbers of edges, fills and steps, and ranks.

    Edges, fills and steps are those of the narrowed `plan`, in which they keep their numbers.
    `broken` says of edges that are left out why they cannot be read.
    """

    plan: TransferPlan
    manifests: Mapping[Side, Manifest]
    ranks: Mapping[Side, IntArray]
    edges: tuple[int, ...]
    fills: tuple[int, ...]
    steps: tuple[int, ...]
    broken: Mapping[int, str] = field(default_factory=dict[int, str])


@dataclass(frozen=True)
class _Members:
    """The numbers of all that belongs to one unit, and whether nothing of it is narrowed."""

    tensors: Mapping[Side, tuple[int, ...]]
    buffers: Mapping[Side, tuple[int, ...]]
    edges: tuple[int, ...]
    fills: tuple[int, ...]
    steps: tuple[int, ...]
    whole: bool


def units(plan: TransferPlan, sender: Manifest, receiver: Manifest) -> Iterator[Unit]:
    """Yield the units of a plan and its manifests, in the order of their first members."""
    manifests = {Side.SENDER: sender, Side.RECEIVER: receiver}
    links = link(plan, manifests)
    for members in _members(links, plan, manifests):
        yield _narrowed(plan, manifests, links, members)


def whole(plan: TransferPlan, sender: Manifest, receiver: Manifest) -> Unit:
    """Everything as one unit, with nothing narrowed."""
    manifests = {Side.SENDER: sender, Side.RECEIVER: receiver}
    return Unit(
        plan,
        manifests,
        {side: np.arange(m.world_size, dtype=np.int64) for side, m in manifests.items()},
        tuple(range(len(plan.edges))),
        tuple(range(len(plan.fills))),
        tuple(range(len(plan.derived))),
    )


def _members(
    links: Links, plan: TransferPlan, manifests: Mapping[Side, Manifest]
) -> Iterator[_Members]:
    found: dict[Node, dict[Node, None]] = {}
    for node in _nodes(plan, manifests):
        found.setdefault(links.units[node], {})[node] = None
    unnarrowed = {links.units[node] for node in links.whole}
    for root, nodes in found.items():
        yield _Members(
            {side: _numbers(nodes, "tensor family", side) for side in Side},
            {side: _numbers(nodes, "buffer family", side) for side in Side},
            _numbers(nodes, "edge"),
            _numbers(nodes, "fill"),
            _numbers(nodes, "step"),
            root in unnarrowed,
        )


def _nodes(plan: TransferPlan, manifests: Mapping[Side, Manifest]) -> Iterator[Node]:
    for number in range(len(plan.edges)):
        yield ("edge", str(number))
    for number in range(len(plan.fills)):
        yield ("fill", str(number))
    for number in range(len(plan.derived)):
        yield ("step", str(number))
    for side, manifest in manifests.items():
        for number in range(len(manifest.tensors)):
            yield ("tensor family", side, str(number))
        for number in range(len(manifest.buffers)):
            yield ("buffer family", side, str(number))


def _numbers(nodes: Iterable[Node], *kind: str) -> tuple[int, ...]:
    return tuple(int(node[-1]) for node in nodes if node[:-1] == kind)


def _narrowed(
    plan: TransferPlan, manifests: Mapping[Side, Manifest], links: Links, members: _Members
) -> Unit:
    everything = Unit(
        plan,
        {side: _part(manifest, members, side) for side, manifest in manifests.items()},
        {side: np.arange(m.world_size, dtype=np.int64) for side, m in manifests.items()},
        members.edges,
        members.fills,
        members.steps,
    )
    view = _View(plan, manifests, links, members)
    if members.whole or view.senders_matter():
        return everything
    try:
        found = view.kinds()
    except (ValueError, KeyError, OverflowError):
        broken = _broken(plan, members)
        if not broken:
            return everything
        rest = replace(members, edges=tuple(n for n in members.edges if n not in broken))
        return replace(_narrowed(plan, manifests, links, rest), broken=broken)
    return replace(
        everything,
        plan=view.narrowed_plan(found),
        manifests={side: view.narrowed_manifest(found, side) for side in everything.manifests},
        ranks=found.ranks,
    )


def _broken(plan: TransferPlan, members: _Members) -> dict[int, str]:
    """The edges of a unit that break the rules of plans, and how; no kinds can be told of them."""
    found: dict[int, str] = {}
    for finding in plan_entries(plan):
        kind, number = finding.path[:2]
        if kind == "edges" and number in members.edges:
            found.setdefault(int(number), finding.message)
    return found


def _part(manifest: Manifest, members: _Members, side: Side) -> Manifest:
    return manifest.model_copy(
        update={
            "tensors": tuple(manifest.tensors[n] for n in members.tensors[side]),
            "buffers": tuple(manifest.buffers[n] for n in members.buffers[side]),
        }
    )


@dataclass(frozen=True)
class _View:
    """One unit as readers, whose indices have the names of their links."""

    plan: TransferPlan
    manifests: Mapping[Side, Manifest]
    links: Links
    members: _Members

    def kinds(self) -> Kinds:
        """Find the kinds of the unit's index values and ranks."""
        meshes: Mapping[Side, PlanSide] = {
            Side.SENDER: self.plan.sender,
            Side.RECEIVER: self.plan.receiver,
        }
        lookups = {side: table_arrays(mesh.tables) for side, mesh in meshes.items()}
        if self._rounds_count():
            if self.plan.schedule.keys() & self.plan.receiver.tables.keys():
                raise ValueError("one table name with two meanings")
            lookups[Side.RECEIVER] |= table_arrays(self.plan.schedule)
        apart: dict[str, set[int] | None] = {}
        for variable, values in self.links.kept.items():
            known = apart.setdefault(self._root(variable), set())
            assert known is not None, "exact ones come later"
            known |= values
        apart |= {self._root(variable): None for variable in self.links.exact}
        return kinds(list(self._readers()), meshes, lookups, list(self._domains()), apart)

    def _root(self, variable: str) -> str:
        return self.links.indices[variable]

    def _names(self, scope: Scope) -> dict[str, str]:
        """What the indices of a scope are called here.

        Raises:
            ValueError: two of them are linked with each other.
        """
        names = {name: self._root(variable) for name, variable in scope.items()}
        if len(set(names.values())) < len(names):
            raise ValueError("linked indices of one scope")
        return names

    def _domains(self) -> Iterator[dict[str, str]]:
        """The index sets of tensor families."""
        for side, numbers in self.members.tensors.items():
            for number in numbers:
                indices = self.manifests[side].tensors[number].indices
                names = self._names(scope_of(("tensor family", side, str(number)), indices))
                yield {names[name]: text for name, text in indices.items()}

    def _readers(self) -> Iterator[Reader]:
        for side, numbers in self.members.buffers.items():
            for number in numbers:
                yield from self._buffer(side, number, self.manifests[side].buffers[number])
        rounds = self._rounds_count()
        for number in self.members.edges:
            yield from self._edge(number, self.plan.edges[number], rounds=rounds)
        for number in self.members.fills:
            fill = self.plan.fills[number]
            values = (fill.offset, *fill.sizes, *fill.strides)
            names = self._names(scope_of(("fill", str(number)), fill.indices))
            yield reader(Side.RECEIVER, fill.indices, fill.at, values, names)
        for number in self.members.steps:
            step = self.plan.derived[number]
            names = self._names(scope_of(("step", str(number)), step.indices))
            yield reader(Side.RECEIVER, step.indices, step.at, (), names)

    def _buffer(self, side: Side, number: int, buffer: BufferFamily) -> Iterator[Reader]:
        node = ("buffer family", side, str(number))
        scope = scope_of(node, buffer.indices)
        shape = (*buffer.shape, *(buffer.strides or ()))
        yield reader(side, buffer.indices, buffer.at, shape, self._names(scope))
        for place, piece in enumerate(buffer.pieces):
            own = scope_of((*node, "piece", str(place)), piece.indices, scope)
            yield reader(
                side,
                {**buffer.indices, **piece.indices},
                {**buffer.at, **piece.at},
                (*piece_values(piece), *clashes(buffer.at, piece.at)),
                self._names(own),
            )
        for place, fill in enumerate(buffer.fills):
            own = scope_of((*node, "fill", str(place)), fill.indices, scope)
            yield reader(
                side,
                {**buffer.indices, **fill.indices},
                {**buffer.at, **fill.at},
                (fill.offset, *fill.sizes, *fill.strides, *clashes(buffer.at, fill.at)),
                self._names(own),
            )

    def _edge(self, number: int, edge: Edge, *, rounds: bool) -> Iterator[Reader]:
        node = ("edge", str(number))
        scope = scope_of(node, edge.indices)
        window = (*edge.window.start, *edge.window.extent) if edge.window else ()
        also = (*window, edge.round) if rounds else window
        for side, half, more in (
            (Side.SENDER, edge.sender, ()),
            (Side.RECEIVER, edge.receiver, also),
        ):
            names = self._names(half_scope(node, side, half, scope))
            indices = {**edge.indices, **half.indices}
            yield reader(side, indices, half.at, (*half_values(half), *more), names)

    def _rounds_count(self) -> bool:
        """Whether the proofs compare rounds of this unit that may differ."""
        edges = [self.plan.edges[number] for number in self.members.edges]
        if self.members.steps:
            return True
        late = any(edge.op is Op.AMAX or edge.place is Place.RECEIVER for edge in edges)
        return late and len(set(self._round_texts())) > 1

    def _round_texts(self) -> Iterator[object]:
        for number in self.members.edges:
            edge = self.plan.edges[number]
            node = ("edge", str(number))
            scope = scope_of(node, edge.indices)
            names = self._names(half_scope(node, Side.RECEIVER, edge.receiver, scope))
            yield reader(Side.RECEIVER, {}, {"round": edge.round}, (), names).at["round"]

    def senders_matter(self) -> bool:
        """Whether it may matter which of several equal holders sends."""
        edges = [self.plan.edges[number] for number in self.members.edges]
        families = {
            side: [self.manifests[side].buffers[number] for number in numbers]
            for side, numbers in self.members.buffers.items()
        }
        return senders_matter(edges, families[Side.SENDER], families[Side.RECEIVER])

    def narrowed_plan(self, found: Kinds) -> TransferPlan:
        """The plan with its edges, fills and steps in this unit narrowed."""
        edges: list[Edge] = list(self.plan.edges)
        fills: list[FillEdge] = list(self.plan.fills)
        steps: list[DerivedStep] = list(self.plan.derived)
        for number in self.members.edges:
            edges[number] = self._narrowed_edge(found, number, edges[number])
        for number in self.members.fills:
            scope = scope_of(("fill", str(number)), fills[number].indices)
            indices = self._narrow(found, scope, fills[number].indices)
            fills[number] = fills[number].model_copy(update={"indices": indices})
        for number in self.members.steps:
            scope = scope_of(("step", str(number)), steps[number].indices)
            indices = self._narrow(found, scope, steps[number].indices)
            steps[number] = steps[number].model_copy(update={"indices": indices})
        update = {"edges": tuple(edges), "fills": tuple(fills), "derived": tuple(steps)}
        return self.plan.model_copy(update=update)

    def _narrowed_edge(self, found: Kinds, number: int, edge: Edge) -> Edge:
        node = ("edge", str(number))
        scope = scope_of(node, edge.indices)
        halves = {
            side.value: half.model_copy(
                update={
                    "indices": self._narrow(
                        found, half_scope(node, side, half, scope), half.indices
                    )
                }
            )
            for side, half in ((Side.SENDER, edge.sender), (Side.RECEIVER, edge.receiver))
        }
        return edge.model_copy(
            update={"indices": self._narrow(found, scope, edge.indices), **halves}
        )

    def narrowed_manifest(self, found: Kinds, side: Side) -> Manifest:
        """The families of one side's manifest in this unit, narrowed."""
        manifest, tensors, buffers = (
            self.manifests[side],
            list[TensorFamily](),
            list[BufferFamily](),
        )
        for number in self.members.tensors[side]:
            tensor = manifest.tensors[number]
            scope = scope_of(("tensor family", side, str(number)), tensor.indices)
            indices = self._narrow(found, scope, tensor.indices)
            tensors.append(tensor.model_copy(update={"indices": indices}))
        for number in self.members.buffers[side]:
            buffers.append(self._narrowed_buffer(found, side, number, manifest.buffers[number]))
        update = {"tensors": tuple(tensors), "buffers": tuple(buffers)}
        return manifest.model_copy(update=update)

    def _narrowed_buffer(
        self, found: Kinds, side: Side, number: int, buffer: BufferFamily
    ) -> BufferFamily:
        node = ("buffer family", side, str(number))
        scope = scope_of(node, buffer.indices)
        pieces: list[Piece] = []
        for place, piece in enumerate(buffer.pieces):
            own = scope_of((*node, "piece", str(place)), piece.indices)
            indices = self._narrow(found, own, piece.indices)
            pieces.append(piece.model_copy(update={"indices": indices}))
        fills: list[Fill] = []
        for place, fill in enumerate(buffer.fills):
            own = scope_of((*node, "fill", str(place)), fill.indices)
            fills.append(
                fill.model_copy(update={"indices": self._narrow(found, own, fill.indices)})
            )
        return buffer.model_copy(
            update={
                "indices": self._narrow(found, scope, buffer.indices),
                "pieces": tuple(pieces),
                "fills": tuple(fills),
            }
        )

    def _narrow(self, found: Kinds, scope: Scope, indices: Mapping[str, str]) -> dict[str, str]:
        """Index sets with one value of each kind."""
        own = {self._root(scope[name]): text for name, text in indices.items()}
        narrowed = found.narrowed(own)
        return {name: narrowed[self._root(scope[name])] for name in indices}

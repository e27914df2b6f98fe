"""Which names of a plan and its manifests may be the same, and what that says of their indices.

Two names can be equal only if their texts are, apart from all numbers in them. Everything that
mentions such a name belongs to one unit. Where the holes of two names are the same expression, the
indices in them mean the same: they are linked, and values of linked indices are narrowed together.

A hole like `layer % 4` is equal for several layers. No rank declares two buffers of one name, so
that it still tells which one is meant, by whatever exists for the same index values on the same
ranks. For everything else all values of its indices are looked at.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from networkx.utils import UnionFind

from tranship.schema.expression import (
    Constant,
    Expression,
    Lookup,
    Operation,
    Variable,
    parse,
    substitute,
    variables,
)
from tranship.schema.manifest import (
    Alias,
    BufferFamily,
    Derived,
    IntExpression,
    Manifest,
    Scale,
    Scaled,
    Side,
)
from tranship.schema.plan import Edge, Half, TransferPlan
from tranship.schema.rules.nametables import split_name

Scope = Mapping[str, str]
"""Where indices are read: the variable that each name stands for."""

Node = tuple[str, ...]


@dataclass(frozen=True)
class Extent:
    """For which index values, and on which ranks, something exists; `declares` a name, or uses it.

    Edges need none: their tensors tell what their indices mean (`units.py`).
    """

    indices: Mapping[str, str]
    at: Mapping[str, IntExpression]
    declares: bool = False


@dataclass(frozen=True)
class _Mention:
    holes: tuple[Expression, ...]
    scope: Scope
    extent: Extent | None


@dataclass(frozen=True)
class Links:
    """What belongs together.

    `units` joins the nodes of names, families, edges, fills and steps. `indices` joins variables;
    `exact` are variables of which every value is looked at, `kept` single values that are.
    Nothing is narrowed in units of the nodes in `whole`.
    """

    units: "UnionFind[Node]" = field(default_factory=lambda: UnionFind())
    indices: "UnionFind[str]" = field(default_factory=lambda: UnionFind())
    exact: set[str] = field(default_factory=set[str])
    kept: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    whole: set[Node] = field(default_factory=set[Node])
    seen: dict[Node, list[_Mention]] = field(default_factory=dict[Node, list[_Mention]])

    def mention(
        self, kind: str, name: str, scope: Scope, node: Node, extent: Extent | None = None
    ) -> None:
        """Say that `node` mentions a name of a tensor or of a side's buffer."""
        template = split_name(name)
        key = (kind, *template.texts)
        self.units.union(key, node)
        known = self.seen.setdefault(key, [])
        own = _Mention(template.holes, scope, extent)
        for other in known:
            self._link(key, own, other)
        known.append(own)

    def _link(self, key: Node, ours: _Mention, theirs: _Mention) -> None:
        """Link two names, hole by hole."""
        renamed, same = dict[str, str](), True
        for one, two in zip(ours.holes, theirs.holes, strict=True):
            if self._keep(one, two, theirs.scope) or self._keep(two, one, ours.scope):
                continue
            pairs = _pairs(one, ours.scope, two, theirs.scope)
            if pairs is None:
                same = False
                self._distrust(key, one, ours.scope)
                self._distrust(key, two, theirs.scope)
                continue
            renamed |= dict(pairs)
            for first, second in pairs:
                self.indices.union(ours.scope[first], theirs.scope[second])
        if not (same and _exist_alike(ours.extent, theirs.extent, renamed)):
            for mention in (ours, theirs):
                for hole in mention.holes:
                    if not isinstance(hole, Constant | Variable):
                        self._distrust(key, hole, mention.scope)

    def _keep(self, constant: Expression, hole: Expression, scope: Scope) -> bool:
        """Look at the one value at which an index has a number's name; False for other holes."""
        match constant, hole:
            case Constant(), Constant():
                return True
            case Constant(value), Variable(name) if name in scope:
                self.kept.setdefault(scope[name], set()).add(value)
                return True
            case _:
                return False

    def _distrust(self, key: Node, hole: Expression, scope: Scope) -> None:
        """Look at all values that a hole reads: it may not say which name is meant."""
        read = variables(hole)
        self.exact.update(scope[name] for name in read if name in scope)
        if not read <= scope.keys():
            self.whole.add(key)


def _pairs(
    ours: Expression, scope: Scope, theirs: Expression, other: Scope
) -> list[tuple[str, str]] | None:
    """Pairs of indices by which two holes are the same; None where they differ."""
    found: list[tuple[str, str]] = []
    for pair in _same(ours, theirs):
        if pair is None or (pair[0] in scope) != (pair[1] in other):
            return None
        if pair[0] in scope:
            found.append(pair)
        elif pair[0] != pair[1]:
            return None  # two axes
    return found


def _exist_alike(ours: Extent | None, theirs: Extent | None, names: Mapping[str, str]) -> bool:
    """Whether two mentions exist at the same index values on the same ranks.

    `names` are our indices by their names there. Only what is declared is ever looked up.
    """
    if ours is None or theirs is None or ours.declares == theirs.declares:
        return True
    if names.keys() != ours.indices.keys() or set(names.values()) != set(theirs.indices):
        return False
    if any(ours.indices[name] != theirs.indices[other] for name, other in names.items()):
        return False
    variables_there = {name: Variable(other) for name, other in names.items()}
    here = {axis: substitute(parse(text), variables_there) for axis, text in ours.at.items()}
    return here == {axis: substitute(parse(text), {}) for axis, text in theirs.at.items()}


def _same(ours: Expression, theirs: Expression) -> Iterator[tuple[str, str] | None]:
    """Pairs of variables by which two expressions are the same; None where they differ."""
    match ours, theirs:
        case Variable(one), Variable(two):
            yield one, two
        case Operation(one, a, b), Operation(two, c, d) if one == two:
            yield from _same(a, c)
            yield from _same(b, d)
        case Lookup(one, a), Lookup(two, b) if one == two:
            yield from _same(a, b)
        case _:
            if ours != theirs:
                yield None


def link(plan: TransferPlan, manifests: Mapping[Side, Manifest]) -> Links:
    """Link everything that a plan and its manifests mention.

    What an edge, fill or step mentions by a template that does not parse is left out.
    """
    links = Links()
    for side, manifest in manifests.items():
        for number, tensor in enumerate(manifest.tensors):
            node = ("tensor family", side, str(number))
            scope = scope_of(node, tensor.indices)
            links.mention("tensor", tensor.name, scope, node)
            if tensor.tied_to is not None:
                links.mention("tensor", tensor.tied_to, scope, node)
        for number, buffer in enumerate(manifest.buffers):
            _buffer(links, side, number, buffer)
    for number, edge in enumerate(plan.edges):
        node = ("edge", str(number))
        _attempt(links, edge_mentions(edge, node), node)
        links.exact.update(_untold_by_edge(edge, node))
    for number, fill in enumerate(plan.fills):
        node = ("fill", str(number))
        mentions = [(Side.RECEIVER, fill.buffer, scope_of(node, fill.indices))]
        _attempt(links, mentions, node, Extent(fill.indices, fill.at))
        links.exact.update(_untold(scope_of(node, fill.indices), fill.buffer, plain=False))
    for number, step in enumerate(plan.derived):
        node = ("step", str(number))
        scope = scope_of(node, step.indices)
        names = (step.buffer, *step.inputs)
        mentions = [(Side.RECEIVER, name, scope) for name in names]
        _attempt(links, mentions, node, Extent(step.indices, step.at))
        links.exact.update(_untold(scope, step.buffer, plain=False))
    return links


def _untold_by_edge(edge: Edge, node: Node) -> Iterator[str]:
    """Variables whose values may mean one piece: an edge might name it several times."""
    scope = scope_of(node, edge.indices)
    for name in (edge.tensor, edge.source or edge.tensor):
        yield from _untold(scope, name, plain=True)
    for side, half in ((Side.SENDER, edge.sender), (Side.RECEIVER, edge.receiver)):
        yield from _untold(scope_of((*node, side), half.indices), half.buffer, plain=True)


def _untold(scope: Scope, name: str, *, plain: bool) -> Iterator[str]:
    """Variables that are not in a name, or (where `plain`) not by themselves."""
    try:
        holes = split_name(name).holes
    except ValueError:
        holes = ()
    told = [variables(hole) for hole in holes if isinstance(hole, Variable) or not plain]
    for index, variable in scope.items():
        if not any(index in read for read in told):
            yield variable


def scope_of(node: Node, indices: Iterable[str], outer: Scope | None = None) -> Scope:
    """The variables of a family's own indices, besides those around it."""
    return {**(outer or {}), **{name: "/".join((*node, name)) for name in indices}}


def _attempt(
    links: Links,
    mentions: Iterable[tuple[str, str, Scope]],
    node: Node,
    extent: Extent | None = None,
) -> None:
    links.units.union(node)
    for kind, name, scope in mentions:
        try:
            links.mention(kind, name, scope, node, extent)
        except ValueError:
            continue


def edge_mentions(edge: Edge, node: Node) -> Iterable[tuple[str, str, Scope]]:
    """What an edge mentions: kind, name and scope."""
    scope = scope_of(node, edge.indices)
    for name in (edge.tensor, edge.source):
        if name is not None:
            yield "tensor", name, scope
    for side, half in ((Side.SENDER, edge.sender), (Side.RECEIVER, edge.receiver)):
        for name in _half_names(half):
            yield side, name, half_scope(node, side, half, scope)


def half_scope(node: Node, side: Side, half: Half, scope: Scope) -> Scope:
    """The variables of a half."""
    return scope_of((*node, side), half.indices, scope)


def _half_names(half: Half) -> Iterable[str]:
    yield half.buffer
    if half.scale is not None:
        yield half.scale.buffer


def _buffer(links: Links, side: Side, number: int, buffer: BufferFamily) -> None:
    node = ("buffer family", side, str(number))
    scope = scope_of(node, buffer.indices)
    links.mention(side, buffer.name, scope, node, Extent(buffer.indices, buffer.at, declares=True))
    for name in _references(buffer):
        links.mention(side, name, scope, node, Extent(buffer.indices, buffer.at))
    for place, piece in enumerate(buffer.pieces):
        own = scope_of((*node, "piece", str(place)), piece.indices, scope)
        links.mention("tensor", piece.tensor, own, node)


def _references(buffer: BufferFamily) -> Iterator[str]:
    """The names of other buffers that a family speaks of."""
    match buffer.encoding:
        case Scaled(scale=name) | Scale(of=name):
            yield name
        case _:
            pass
    match buffer.role:
        case Alias(of=name):
            yield name
        case Derived(inputs=inputs):
            yield from inputs
        case _:
            pass

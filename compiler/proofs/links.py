"""Which names of a plan and its manifests may be the same, and what that says of their indices.

Two names can be equal only if their texts are, apart from all numbers in them. Everything that
mentions such a name belongs to one unit. Where the holes of two names are the same expression, the
indices in them mean the same: they are linked, and values of linked indices are narrowed together.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from networkx.utils import UnionFind

from tranship.schema.expression import Constant, Expression, Lookup, Operation, Variable, variables
from tranship.schema.manifest import Alias, BufferFamily, Derived, Manifest, Scale, Scaled, Side
from tranship.schema.plan import Edge, Half, TransferPlan
from tranship.schema.rules.nametables import split_name

Scope = Mapping[str, str]
"""Where indices are read: the variable that each name stands for."""

Node = tuple[str, ...]


@dataclass(frozen=True)
class Links:
    """What belongs together.

    `units` joins the nodes of names, families, edges, fills and steps. `indices` joins variables;
    `exact` are variables of which every value is looked at, `kept` single values that are.
    """

    units: "UnionFind[Node]" = field(default_factory=lambda: UnionFind())
    indices: "UnionFind[str]" = field(default_factory=lambda: UnionFind())
    exact: set[str] = field(default_factory=set[str])
    kept: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    seen: dict[Node, list[tuple[tuple[Expression, ...], Scope]]] = field(
        default_factory=dict[Node, list[tuple[tuple[Expression, ...], Scope]]]
    )

    def mention(self, kind: str, name: str, scope: Scope, node: Node) -> None:
        """Say that `node` mentions a name of a tensor or of a side's buffer."""
        template = split_name(name)
        key = (kind, *template.texts)
        self.units.union(key, node)
        known = self.seen.setdefault(key, [])
        for holes, other in known:
            for ours, theirs in zip(template.holes, holes, strict=True):
                self._link(ours, scope, theirs, other)
        known.append((template.holes, scope))

    def _link(self, ours: Expression, scope: Scope, theirs: Expression, other: Scope) -> None:
        """Link two holes of one name."""
        match ours, theirs:
            case Constant(), Constant():
                return
            case (Constant(value), Variable(name)) if name in other:
                self.kept.setdefault(other[name], set()).add(value)
                return
            case (Variable(name), Constant(value)) if name in scope:
                self.kept.setdefault(scope[name], set()).add(value)
                return
            case _:
                pairs = list(_same(ours, theirs))
        if None in pairs:
            self.exact.update(scope[name] for name in variables(ours) if name in scope)
            self.exact.update(other[name] for name in variables(theirs) if name in other)
            return
        for pair in pairs:
            if pair is not None and pair[0] in scope and pair[1] in other:
                self.indices.union(scope[pair[0]], other[pair[1]])


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
        _attempt(links, edge_mentions(edge, ("edge", str(number))), ("edge", str(number)))
    for number, fill in enumerate(plan.fills):
        node = ("fill", str(number))
        mentions = [(Side.RECEIVER, fill.buffer, scope_of(node, fill.indices))]
        _attempt(links, mentions, node)
    for number, step in enumerate(plan.derived):
        node = ("step", str(number))
        scope = scope_of(node, step.indices)
        names = (step.buffer, *step.inputs)
        _attempt(links, [(Side.RECEIVER, name, scope) for name in names], node)
    return links


def scope_of(node: Node, indices: Iterable[str], outer: Scope | None = None) -> Scope:
    """The variables of a family's own indices, besides those around it."""
    return {**(outer or {}), **{name: "/".join((*node, name)) for name in indices}}


def _attempt(links: Links, mentions: Iterable[tuple[str, str, Scope]], node: Node) -> None:
    links.units.union(node)
    for kind, name, scope in mentions:
        try:
            links.mention(kind, name, scope, node)
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
    names = [buffer.name]
    match buffer.encoding:
        case Scaled(scale=name) | Scale(of=name):
            names.append(name)
        case _:
            pass
    match buffer.role:
        case Alias(of=name):
            names.append(name)
        case Derived(inputs=inputs):
            names += inputs
        case _:
            pass
    for name in names:
        links.mention(side, name, scope, node)
    for place, piece in enumerate(buffer.pieces):
        own = scope_of((*node, "piece", str(place)), piece.indices, scope)
        links.mention("tensor", piece.tensor, own, node)

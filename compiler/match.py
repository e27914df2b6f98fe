"""Pass 1: pair every receiver piece with the sender pieces that hold the same logical tensors."""

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from tranship.compiler.agree import agree
from tranship.compiler.fresh import with_fresh_names
from tranship.compiler.holder import (
    Holder,
    Indices,
    Uncovered,
    common_indices,
    rename,
    uncovered,
)
from tranship.compiler.holders import holders
from tranship.compiler.inputs import POLICY, Inputs, draft_side, name_matches
from tranship.compiler.number import numbered
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Label
from tranship.schema.expression import Constant
from tranship.schema.manifest import Kind, Side, TensorFamily
from tranship.schema.moves import grid_size
from tranship.schema.nearest import nearest
from tranship.schema.plan import UnusedTensor
from tranship.schema.template import parse_template, template_text

Texts = tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """A receiver piece and one sender piece that hold tensors of one name, over `indices`.

    `source` is the sender's name for them where it differs: the tensor they are tied to.
    """

    tensor: str
    source: str | None
    shape: tuple[int, ...]
    indices: Indices
    sender: Holder
    receiver: Holder


@dataclass(frozen=True)
class Matched:
    """All matches, and the sender tensors that the policy lets go unused."""

    matches: tuple[Match, ...]
    unused: tuple[UnusedTensor, ...]


def match(inputs: Inputs) -> Matched:
    """Pair the two sides' pieces by tensor name.

    Raises:
        DiagnosticError: TS201 a receiver tensor that the sender lacks, TS202 a sender tensor that
            nobody takes, TS203 two global shapes, TS204 a policy line that excuses nothing, TS205
            ties that cannot be followed, TS206 two opinions on what is not quantized.
    """
    senders, receivers = with_fresh_names(
        inputs,
        holders(inputs.sender, draft_side(inputs.sender)),
        holders(inputs.receiver, draft_side(inputs.receiver)),
    )
    graph = _name_graph(inputs, senders, receivers)
    matches = tuple(
        found
        for receiver in receivers
        for sender in senders
        if graph.has_edge(
            (Side.SENDER, sender.tensor.texts), (Side.RECEIVER, receiver.tensor.texts)
        )
        for found in _pairs(sender, receiver)
    )
    unused, problems = _unused(inputs, senders, matches)
    problems += _missing(inputs, receivers, senders, matches) + _shapes(inputs, matches)
    problems += agree(inputs)
    if problems:
        raise DiagnosticError(problems)
    return Matched(matches, unused)


def _name_graph(
    inputs: Inputs, senders: tuple[Holder, ...], receivers: tuple[Holder, ...]
) -> "nx.Graph[tuple[Side, Texts]]":
    """Bipartite graph of tensor families: an edge where the sender's holds the receiver's value."""
    graph: nx.Graph[tuple[Side, Texts]] = nx.Graph()
    held = {holder.tensor.texts for holder in senders}
    ties = _ties(inputs)
    for texts in {holder.tensor.texts for holder in receivers}:
        own = texts if texts in held else ties.get(texts)
        if own in held:
            graph.add_edge((Side.SENDER, own), (Side.RECEIVER, texts))
    return graph


def _ties(inputs: Inputs) -> dict[Texts, Texts]:
    """Names of tied tensors to the names of what they are tied to, on either side.

    Raises:
        DiagnosticError: TS205 ties that contradict one another, or that change an index.
    """
    found: dict[Texts, Texts] = {}
    problems: list[Diagnostic] = []
    for side in Side:
        for number, family in enumerate(numbered(inputs.manifest(side)).tensors):
            if family.tied_to is None:
                continue
            name, other = parse_template(family.name), parse_template(family.tied_to)
            if _keeps_indices(family) and found.setdefault(name.texts, other.texts) == other.texts:
                continue
            problems.append(
                Diagnostic(
                    code="TS205",
                    message=f"{family.name} cannot be tied to {family.tied_to}",
                    at=inputs.at(side.value, f"/tensors/{number}/tied_to"),
                    expected="one tensor on both sides, with the same indices in the same order",
                    found=family.tied_to,
                    help="declare the tensor's own pieces, or the tie that both sides mean",
                )
            )
    if problems:
        raise DiagnosticError(problems)
    return found


def _keeps_indices(family: TensorFamily) -> bool:
    """Whether every hole of `tied_to` is the index of the name's hole at that place."""
    assert family.tied_to is not None
    name, other = parse_template(family.name), parse_template(family.tied_to)
    if len(name.holes) != len(other.holes):
        return False
    return all(
        theirs == ours
        or (isinstance(theirs, Constant) and family.indices[index] == str(theirs.value))
        for index, ours, theirs in zip(name.index_names, name.holes, other.holes, strict=True)
    )


def _pairs(sender: Holder, receiver: Holder) -> Iterator[Match]:
    """The match of two holders whose names agree, if they share an index assignment."""
    names = dict(zip(sender.tensor.index_names, receiver.tensor.index_names, strict=True))
    sender = rename(sender, names)
    indices = common_indices(receiver.indices, sender.indices)
    if indices is None:
        return
    tied = sender.tensor.texts != receiver.tensor.texts
    yield Match(
        tensor=template_text(receiver.tensor),
        source=template_text(sender.tensor) if tied else None,
        shape=receiver.shape,
        indices=indices,
        sender=sender,
        receiver=receiver,
    )


def _missing(
    inputs: Inputs,
    receivers: tuple[Holder, ...],
    senders: tuple[Holder, ...],
    matches: tuple[Match, ...],
) -> list[Diagnostic]:
    """TS201: receiver tensors without any sender piece."""
    problems: list[Diagnostic] = []
    for receiver in receivers:
        if 0 in receiver.shape:
            continue
        covered = [m for m in matches if m.receiver.pointer == receiver.pointer]
        left = uncovered(receiver.indices, [m.indices for m in covered])
        if left.count:
            problems.append(_missing_diagnostic(inputs, receiver, senders, left))
    return problems


def _missing_diagnostic(
    inputs: Inputs, receiver: Holder, senders: tuple[Holder, ...], left: Uncovered
) -> Diagnostic:
    name = template_text(receiver.tensor)
    known = {template_text(holder.tensor): holder for holder in senders}
    shape = list(receiver.shape)
    labels = tuple(
        Label(
            inputs.at("sender", known[near].pointer),
            f"{near} {list(known[near].shape)} is close",
        )
        for near in nearest(name, known)
    )
    some = f" ({left.count} of {grid_size(receiver.indices)})" if receiver.indices else ""
    first = left.first
    return Diagnostic(
        code="TS201",
        message=f"no sender piece holds {name}{some}",
        at=inputs.at("receiver", receiver.pointer),
        expected=f"a sender piece of {name} {shape}",
        found="none"
        if not first
        else f"none for {', '.join(f'{k} {v}' for k, v in first.items())}",
        labels=labels,
        help=_missing_help(receiver),
    )


def _missing_help(receiver: Holder) -> str:
    advice = "declare it on the sender, or declare the receiver's buffer constant or derived"
    if receiver.buffer.kind is Kind.PARAMETER:
        return advice
    kind = f"the engine holds it as {'an' if receiver.buffer.kind is Kind.ATTRIBUTE else 'a'} "
    return f"{kind}{receiver.buffer.kind}, which named_parameters() does not list: {advice}"


def _shapes(inputs: Inputs, matches: tuple[Match, ...]) -> list[Diagnostic]:
    """TS203: matched tensors whose global shapes differ."""
    problems: list[Diagnostic] = []
    for found in {(m.tensor, m.sender.pointer): m for m in matches}.values():
        theirs = found.sender.shape
        if theirs != found.shape:
            problems.append(
                Diagnostic(
                    code="TS203",
                    message=f"the two sides give {found.tensor} different shapes",
                    at=inputs.at("receiver", found.receiver.pointer),
                    expected=f"{list(theirs)} (sender)",
                    found=f"{list(found.shape)} (receiver)",
                    labels=(Label(inputs.at("sender", found.sender.pointer), "held here"),),
                    help="declare true sizes on both sides and padding as fills"
                    if len(theirs) == len(found.shape)
                    else "declare a view with its tensor's own dims: a piece with strides",
                )
            )
    return problems


def _unused(
    inputs: Inputs, senders: tuple[Holder, ...], matches: tuple[Match, ...]
) -> tuple[tuple[UnusedTensor, ...], list[Diagnostic]]:
    """TS202 and TS204: sender tensors that no receiver takes, and idle excuses."""
    lines = inputs.policy.unused if inputs.policy else ()
    excused: list[UnusedTensor] = []
    problems: list[Diagnostic] = []
    worked: set[int] = set()
    for name, pointer in _left_over(senders, matches):
        hits = [n for n, line in enumerate(lines) if name_matches(name, line.tensors)]
        worked.update(hits)
        if hits:
            excused.append(UnusedTensor(tensor=name, reason=lines[hits[0]].reason))
        else:
            problems.append(_unused_diagnostic(inputs, name, pointer))
    for number in sorted(set(range(len(lines))) - worked):
        problems.append(
            Diagnostic(
                code="TS204",
                message=f"the policy excuses {lines[number].tensors}, but none goes unused",
                at=inputs.at(POLICY, f"/unused/{number}"),
                help="remove the line, or correct its pattern",
            )
        )
    return tuple(dict.fromkeys(excused)), problems


def _left_over(
    senders: tuple[Holder, ...], matches: tuple[Match, ...]
) -> Iterator[tuple[str, str]]:
    """Names (with the indices that are left) of sender tensors in no match, and where they are."""
    used: dict[Texts, list[Indices]] = {}
    for found in matches:
        used.setdefault(found.sender.tensor.texts, []).append(found.indices)
    seen: set[str] = set()
    for sender in senders:
        left = uncovered(sender.indices, used.get(sender.tensor.texts, []))
        name = template_text(sender.tensor)
        if left.count and name not in seen:
            seen.add(name)
            yield name, sender.pointer


def _unused_diagnostic(inputs: Inputs, name: str, pointer: str) -> Diagnostic:
    return Diagnostic(
        code="TS202",
        message=f"the sender holds {name}, and no receiver buffer takes it",
        at=inputs.at("sender", pointer),
        help="declare the receiver's buffer, or excuse it in the policy",
        suggestion=f'{{"tensors": "{name}", "reason": "..."}}',
    )

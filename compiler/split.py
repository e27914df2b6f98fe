"""How layers that do not fit one round together are divided over several.

The largest piece that must travel together (a tensor, one of its experts, or a window of its rows)
is dealt out over the rounds of its wave like a card: to round `(expert * windows + window + shift +
start) % rounds`, counted from the wave's first. Every layer of a wave has another `shift`, so that
no receiver gets the same piece of all layers at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import lcm

import numpy as np

from tranship.compiler.fresh import window_index
from tranship.compiler.inputs import Inputs
from tranship.compiler.usage import End, Usage, usage_of
from tranship.schema import indexset
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.expression import IntArray
from tranship.schema.manifest import IntExpression
from tranship.schema.moves import edge_block
from tranship.schema.plan import Edge, Window
from tranship.schema.template import parse_template

FINE = 4
"""Tensors are cut into windows of at most this part of a round, where their blocks allow it."""


@dataclass(frozen=True)
class Wave:
    """Which layers travel together: `number[layer]`, and `place[layer]` among those of its wave.

    `shift` is an expression for `place` over the layers' index; empty if that is always 0.
    """

    number: IntArray
    place: IntArray
    shift: str

    @property
    def count(self) -> int:
        """Number of waves."""
        return int(self.number.max(initial=-1)) + 1


@dataclass(frozen=True)
class Part:
    """What dividing adds to an edge: its round, counted from the wave's first, and a window."""

    term: str
    indices: dict[str, str] = field(default_factory=dict[str, str])
    window: Window | None = None


@dataclass(frozen=True)
class Division:
    """Rounds that one wave takes, and every edge's part in them; or why it cannot be divided."""

    rounds: int
    parts: dict[int, Part]
    problem: Diagnostic | None = None


@dataclass(frozen=True)
class _Deck:
    """One tensor that is dealt out in pieces: its edges, cut into windows, and all that they use.

    `numbers` are the edges' numbers, `names` the tensor's indices, `window` the index of windows
    ("" without any), of which there are `windows`. The largest of `count` pieces has `peak` bytes.
    """

    numbers: tuple[int, ...]
    edges: tuple[Edge, ...]
    usage: Usage
    names: tuple[str, ...]
    window: str
    windows: int
    count: int
    peak: int

    @property
    def text(self) -> str:
        """The expression that counts the pieces of one layer from 0."""
        second = "".join(self.names[1:2])
        if second and self.window:
            second = f"{second} * {self.windows}"
        return " + ".join(term for term in (second, self.window) if term)

    def cards(self, end: End) -> IntArray:
        """Which piece every row of an edge is of, by the same count."""
        total = np.zeros_like(end.size)
        for name in self.names[1:2]:
            total += end.indices[name] * self.windows
        return total + end.indices[self.window] if self.window else total

    def turns(self, end: End, wave: Wave) -> tuple[IntArray, IntArray]:
        """Every row's wave, and its round but for where the deck begins."""
        cards = self.cards(end)
        if not self.names:
            return np.zeros_like(cards), cards
        layer = end.indices[self.names[0]]
        return wave.number[layer], cards + wave.place[layer]


def divide(
    inputs: Inputs, edges: Sequence[Edge], chosen: Sequence[int], wave: Wave, capacity: int
) -> Division:
    """Spread the edges of one wave (the largest decides for all) over as few rounds as fit."""
    decks: list[_Deck] = []
    for members in _tensors(edges, chosen):
        deck = _deck(inputs, edges, members, capacity)
        if deck.peak > capacity:
            return Division(0, {}, _too_large(inputs, edges[members[0]], capacity))
        decks.append(deck)
    columns = decks[0].usage.columns
    height = max(wave.count, 1)
    total = sum(
        (_table(deck, wave, 0, 1, height) for deck in decks), np.zeros((height, columns), np.int64)
    )
    least = max(1, -(-int(total.max(initial=0)) // capacity))
    alone = Wave(wave.number, np.zeros_like(wave.place), "")
    # With a round for every piece, and one layer a wave, each is alone in its round, and fits.
    for kind, most in ((wave, 4 * least + 16), (alone, sum(deck.count for deck in decks))):
        for count in _counts(least, most):
            starts = _starts(decks, count)
            tables = zip(decks, starts, strict=True)
            used = sum(_table(deck, kind, start, count, count * height) for deck, start in tables)
            if int(np.max(used)) <= capacity:
                return Division(count, _parts(decks, starts, kind.shift, count))
    return Division(0, {}, _too_large(inputs, edges[chosen[0]], capacity))


def _tensors(edges: Sequence[Edge], chosen: Sequence[int]) -> list[list[int]]:
    """Edges by tensor: those of one tensor must share their rounds."""
    found: dict[tuple[str, ...], list[int]] = {}
    for number in chosen:
        found.setdefault(parse_template(edges[number].tensor).texts, []).append(number)
    return list(found.values())


def _table(deck: _Deck, wave: Wave, start: int, count: int, rows: int) -> IntArray:
    """The loads of a deck by round and wave, `[rounds * waves, columns]`."""

    def row(end: End) -> IntArray:
        number, turn = deck.turns(end, wave)
        return (turn + start) % count * (rows // count) + number

    return deck.usage.table(range(len(deck.edges)), rows, row)


def _counts(least: int, most: int) -> Iterator[int]:
    count = least
    while count < most:
        yield count
        count += max(1, count // 8)
    yield max(least, most)


def _starts(decks: Sequence[_Deck], count: int) -> list[int]:
    """Where each deck begins to be dealt: the largest first, each where least is in the way.

    Decks that reach all rounds are staggered. With rounds enough, no two pieces share one.
    """
    if count >= sum(deck.count for deck in decks):
        return [sum(deck.count for deck in decks[:k]) for k in range(len(decks))]
    found = [0] * len(decks)
    long = [k for k, deck in enumerate(decks) if deck.count >= count]
    for place, k in enumerate(long):
        found[k] = place * count // len(long)
    room = np.zeros(count, dtype=np.int64)
    short = [k for k in range(len(decks)) if k not in long]
    for k in sorted(short, key=lambda k: (-decks[k].peak * decks[k].count, k)):
        cards = np.arange(decks[k].count)
        worst = [int(room[(start + cards) % count].max()) for start in range(count)]
        found[k] = worst.index(min(worst))
        room[(found[k] + cards) % count] += decks[k].peak
    return found


def _parts(
    decks: Sequence[_Deck], starts: Sequence[int], shift: str, count: int
) -> dict[int, Part]:
    found: dict[int, Part] = {}
    for deck, start in zip(decks, starts, strict=True):
        term = _term(deck, shift if deck.names else "", start % count, count)
        for number, edge in zip(deck.numbers, deck.edges, strict=True):
            own = {deck.window: edge.indices[deck.window]} if deck.window else {}
            found[number] = Part(term, own, edge.window)
    return found


def _term(deck: _Deck, shift: str, start: int, count: int) -> str:
    """The text of a piece's round, counted from its wave's first."""
    constant = str(start) if start else ""
    if count == 1:
        return ""
    terms = [term for term in (deck.text, shift, constant) if term]
    if terms in ([], [constant]) or (not shift and not constant and deck.count <= count):
        return "".join(terms)
    return (
        f"({' + '.join(terms)}) % {count}" if " " in " + ".join(terms) else f"{terms[0]} % {count}"
    )


def _deck(inputs: Inputs, edges: Sequence[Edge], members: Sequence[int], capacity: int) -> _Deck:
    """One tensor with its pieces, cut into windows of rows if they are large."""
    chosen = [edges[n] for n in members]
    whole = _with_windows(inputs, members, chosen)
    if whole.peak <= capacity // FINE:
        return whole
    best, name = whole, window_index(inputs)
    for cuts in _cuts(chosen, -(-whole.peak // max(capacity // FINE, 1))):
        for width, dim in cuts:
            cut = [_windowed(edge, dim, width, name) for edge in chosen]
            deck = _with_windows(inputs, members, cut, name)
            best = deck if deck.peak < best.peak else best
        if best.peak <= capacity // FINE:
            break
    return best


def _cuts(edges: Sequence[Edge], least: int) -> Iterator[list[tuple[int, int]]]:
    """Ways to cut a tensor into windows of whole blocks, as widths and dims; ever more windows.

    The first ways make `least` windows, or as few more as possible.
    """
    units = [_unit(edges, dim) for dim in range(len(edges[0].shape))]
    sizes = [size if unit else 0 for size, unit in zip(edges[0].shape, units, strict=True)]
    count, seen = max(least, 2), set[tuple[int, int]]()
    while True:
        widths = [
            (_even(max(-(-size // (count * max(unit, 1))), 1)) * unit, dim)
            for dim, (size, unit) in enumerate(zip(sizes, units, strict=True))
        ]
        fresh = [pair for pair in widths if 0 < pair[0] < sizes[pair[1]] and pair not in seen]
        seen.update(fresh)
        if fresh:
            yield fresh
        if all(width <= unit for (width, _), unit in zip(widths, units, strict=True)):
            return
        count += max(1, count // 4)


def _even(width: int) -> int:
    """Round down to a multiple of the largest power of two up to 64, for aligned rows."""
    power = min(1 << (width.bit_length() - 1), 64)
    return width // power * power


def _with_windows(
    inputs: Inputs, members: Sequence[int], edges: Sequence[Edge], window: str = ""
) -> _Deck:
    usage = usage_of(inputs, edges, [*list(edges[0].indices)[:2], window])
    names = tuple(name for name in edges[0].indices if name != window)
    windows = len(indexset.parse(edges[0].indices[window])) if window else 1
    top = 1
    for name in names[1:2]:
        top += max(indexset.parse(edge.indices[name])[-1] for edge in edges)
    return _Deck(
        numbers=tuple(members),
        edges=tuple(edges),
        usage=usage,
        names=names,
        window=window,
        windows=windows,
        count=top * windows,
        peak=usage.most(),
    )


def _unit(edges: Sequence[Edge], dim: int) -> int:
    """Elements of `dim` that must stay together, for whole blocks; 0 if a grid is shifted."""
    unit = 1
    for edge in edges:
        block = edge_block(edge)
        if block is None:
            continue
        if edge.receiver.origin and edge.receiver.origin[dim] != 0:
            return 0
        unit = lcm(unit, block[dim])
    return unit


def _windowed(edge: Edge, dim: int, width: int, name: str) -> Edge:
    count = -(-edge.shape[dim] // width)
    start: list[IntExpression] = [0 for _ in edge.shape]
    start[dim] = f"{name} * {width}"
    extent = [width if d == dim else size for d, size in enumerate(edge.shape)]
    window = Window(start=tuple(start), extent=tuple(extent))
    indices = {**edge.indices, name: f"0..{count - 1}"}
    return edge.model_copy(update={"window": window, "indices": indices})


def _too_large(inputs: Inputs, edge: Edge, capacity: int) -> Diagnostic:
    return Diagnostic(
        code="TS501",
        message=f"{edge.tensor} does not fit the staging memory, even in windows of whole blocks",
        at=inputs.at("transfer", "/options/staging_bytes"),
        expected="rounds that fit half of staging_bytes",
        found=f"{capacity} bytes a round, for a tensor of shape {list(edge.shape)}",
        help="raise staging_bytes in the transfer file",
    )

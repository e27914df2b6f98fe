"""Two edges for the same tensors compared: what happens to the value, and from where to where."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.compiler.diffs.change import Weight
from tranship.compiler.diffs.extras import as_text, extras
from tranship.compiler.diffs.names import name_columns, name_keys
from tranship.compiler.diffs.pieces import Finding
from tranship.compiler.diffs.rows import World, row_codes
from tranship.compiler.diffs.wording import Renaming, entries_text, entry_text, renaming
from tranship.schema.expression import ExpressionError, IntArray
from tranship.schema.manifest import IntExpression
from tranship.schema.members import Rows
from tranship.schema.plan import Edge, Half, Op, Place

_EDGE = frozenset(
    {
        "op",
        "place",
        "formula",
        "tensor",
        "source",
        "indices",
        "shape",
        "sender",
        "receiver",
        "window",
        "turn",
        "nearest",
        "round",
    }
)
_HALF = frozenset(
    {
        "buffer",
        "dtype",
        "indices",
        "at",
        "start",
        "extent",
        "step",
        "origin",
        "offset",
        "strides",
        "block",
        "scale",
    }
)
LOSSY = frozenset({Op.CAST, Op.DEQUANTIZE, Op.REQUANTIZE})
"""What an edge may only do because a policy allows it, or because nothing is lost."""

Found = tuple[Finding, Weight]


@dataclass(frozen=True)
class Ends:
    """An edge, the ranks of both of its sides, and the tables of turns and rounds."""

    edge: Edge
    sender: World
    receiver: World
    schedule: dict[str, IntArray]

    def rows(self, half: Half) -> Rows:
        """One row for every tensor, rank and index under which a half exists."""
        world = self.sender if half is self.edge.sender else self.receiver
        indices = {**self.edge.indices, **half.indices}
        _, rows = world.all_rows().join(indices, half.at)
        return rows.take(np.flatnonzero((rows.array(half.extent) > 0).all(axis=1)))


def edge_findings(old: Ends, new: Ends, numbers: IntArray, *, same_tables: bool) -> Iterator[Found]:
    """Compare two edges for the tensors with these `numbers` `[n, k]` in their names.

    Rounds are compared by `round_of`.
    """
    one, other = old.edge, new.edge
    yield from _plain(one, other)
    if same_tables and _same_scope(one, other):
        if one.model_copy(update={"indices": {}, "round": 0}) == other.model_copy(
            update={"indices": {}, "round": 0}
        ):
            return
    names = renaming(one.tensor, other.tensor)
    if _differ(old, new, numbers, one.sender, other.sender):
        yield from _half("sender", one.sender, other.sender, names)
    is_elsewhere = _differ(old, new, numbers, one.receiver, other.receiver)
    if is_elsewhere:
        yield from _half("receiver", one.receiver, other.receiver, names)
    texts = _route(one, names), _route(other, {})
    # Receivers that are others are also sent to otherwise, by the same rule.
    is_other = texts[0] != texts[1] or _window(one, names) != _window(other, {})
    if (is_other or not is_elsewhere) and _differ_in_route(old, new, numbers):
        windows = _window(one, names), _window(other, {})
        if windows[0] != windows[1]:
            yield Finding("window", *windows), Weight.CHANGE
        if texts[0] != texts[1] or windows[0] == windows[1]:
            yield Finding("route", *_distinguished(*texts)), Weight.CHANGE


def _same_scope(one: Edge, other: Edge) -> bool:
    """Whether the tensor's name tells every index, so that equal texts have equal values."""
    indices = one.indices.keys() | other.indices.keys()
    return one.tensor == other.tensor and all(f"{{{name}}}" in one.tensor for name in indices)


def _plain(one: Edge, other: Edge) -> Iterator[Found]:
    if one.op != other.op:
        weight = Weight.GRANT if other.op in LOSSY else Weight.CHANGE
        yield Finding("op", one.op.value, other.op.value), weight
    elif one.op in LOSSY and _dtypes(one) != _dtypes(other):
        yield Finding("dtypes", _dtypes(one), _dtypes(other)), Weight.GRANT
    elif _dtypes(one) != _dtypes(other):
        yield Finding("dtypes", _dtypes(one), _dtypes(other)), Weight.CHANGE
    if one.place != other.place:
        places = f"{one.op} at the {one.place}", f"{other.op} at the {other.place}"
        yield Finding("place", *places, _why(one, other)), Weight.CHANGE
    if one.formula != other.formula:
        yield Finding("formula", one.formula, other.formula), Weight.CHANGE
    if one.shape != other.shape:
        yield Finding("shape", str(list(one.shape)), str(list(other.shape))), Weight.CHANGE
    grids = _grid(one), _grid(other)
    if grids[0] != grids[1]:
        yield Finding("blocks", *grids), Weight.CHANGE
    for known, first, second in (
        (_EDGE, one, other),
        (_HALF, one.sender, other.sender),
        (_HALF, one.receiver, other.receiver),
    ):
        before, after = extras(first, known), extras(second, known)
        if before != after:
            yield Finding("fields", as_text(before), as_text(after)), Weight.CHANGE


def _why(one: Edge, other: Edge) -> str:
    """Say what decides where a quantize edge runs; `compiler/intersect.py` has the rule."""
    if other.op not in (Op.QUANTIZE, Op.REQUANTIZE) or one.op != other.op:
        return ""
    return "blocks are now cut" if other.place is Place.RECEIVER else "blocks are now whole"


def _dtypes(edge: Edge) -> str:
    ends = [f"{half.dtype}{_scale_dtype(half)}" for half in (edge.sender, edge.receiver)]
    return " to ".join(ends)


def _scale_dtype(half: Half) -> str:
    return f" with {half.scale.dtype} scales" if half.scale else ""


def _grid(edge: Edge) -> str:
    blocks = [half.block for half in (edge.sender, edge.receiver)]
    return " to ".join(" x ".join(str(n) for n in block) if block else "none" for block in blocks)


def _differ(old: Ends, new: Ends, numbers: IntArray, one: Half, other: Half) -> bool:
    """Whether two halves differ in what of the tensors lies where."""
    try:
        first, second = _half_rows(old, numbers, one), _half_rows(new, numbers, other)
    except ExpressionError:
        # The old half need not have values on a mesh that it was not written for.
        return one != other
    return _unlike(first, second)


Described = dict[tuple[object, ...], IntArray]


def _unlike(first: Described, second: Described) -> bool:
    return first.keys() != second.keys() or any(
        not _same_rows(first[kind], second[kind]) for kind in first
    )


def _same_rows(first: IntArray, second: IntArray) -> bool:
    """Whether the same rows occur, however often: an index that they do not read repeats them."""
    if first.shape[1] != second.shape[1]:
        return False
    codes = row_codes(np.concatenate([first, second]))
    return np.array_equal(np.unique(codes[: len(first)]), np.unique(codes[len(first) :]))


def _half_rows(ends: Ends, numbers: IntArray, half: Half) -> Described:
    """List what a half holds: by texts of the buffers' names, a row of numbers per instance."""
    rows = ends.rows(half)
    keys, rows = _members(ends.edge, rows, numbers)
    dims = len(half.start)
    entries: list[IntExpression] = [*half.start, *half.extent, *(half.step or (1,) * dims)]
    entries += [half.offset, *half.strides, *(half.origin or (0,) * dims)]
    names = [half.buffer, *([ends.edge.source or ends.edge.tensor])]
    if half.scale:
        names.append(half.scale.buffer)
        scale = half.scale
        entries += [*scale.start, *scale.extent, scale.offset, *scale.strides]
    parts, kinds = [keys, rows.values["rank"][:, np.newaxis], rows.array(entries)], []
    for name in names:
        texts, which, columns = name_columns(name, rows.values, rows.count, rows.lookup)
        kinds.append(tuple(texts))
        parts += [which[:, np.newaxis], columns]
    return {(dims, half.scale is None, *kinds): np.concatenate(parts, axis=1)}


def _members(edge: Edge, rows: Rows, numbers: IntArray) -> tuple[IntArray, Rows]:
    """Keep the rows of some tensors, and return the numbers in the names `[n, k]`."""
    width = numbers.shape[1]
    keys = np.full((rows.count, width), -1, dtype=np.int64)
    kept = np.zeros(rows.count, dtype=np.bool_)
    for group in name_keys(edge.tensor, rows.values, rows.count, rows.lookup):
        if group.numbers.shape[1] == width:
            keys[group.rows] = group.numbers
            kept[group.rows] = True
    codes = row_codes(np.concatenate([keys, numbers]))
    kept &= np.isin(codes[: rows.count], codes[rows.count :])
    chosen = np.flatnonzero(kept)
    return keys[chosen], rows.take(chosen)


def _half(side: str, one: Half, other: Half, names: Renaming) -> Iterator[Found]:
    moved = entries_text(one.strides, names) != entries_text(other.strides, {})
    ways = (
        ("buffer", one.buffer, other.buffer),
        ("box", _box(one, names), _box(other, {})),
        ("where", _where(one, names), _where(other, {})),
        ("place", _place(one, names, moved=moved), _place(other, {}, moved=moved)),
        ("scales", _scales(one, names), _scales(other, {})),
    )
    found = [Finding(f"{side}.{kind}", a, b) for kind, a, b in ways if a != b]
    if any(one.kind == f"{side}.box" for one in found):  # the other numbers follow from the box
        found = [one for one in found if one.kind not in (f"{side}.place", f"{side}.scales")]
    found = found or [Finding(f"{side}.place", "as its tables had it", "as they have it now")]
    yield from ((finding, Weight.CHANGE) for finding in found)


def _box(half: Half, names: Renaming) -> str:
    step = f" step {list(half.step)}" if half.step else ""
    return f"{entries_text(half.extent, names)} from {entries_text(half.start, names)}{step}"


def _where(half: Half, names: Renaming) -> str:
    parts = [f"{axis} = {entry_text(value, names)}" for axis, value in half.at.items()]
    parts += [f"{name} in {chosen}" for name, chosen in half.indices.items()]
    return ", ".join(parts) or "everywhere"


def _place(half: Half, names: Renaming, *, moved: bool) -> str:
    strides = f" strides {entries_text(half.strides, names)}" if moved else ""
    return f"offset {entry_text(half.offset, names)}{strides}"


def _scales(half: Half, names: Renaming) -> str:
    scale = half.scale
    if scale is None:
        return "none"
    place = f"offset {entry_text(scale.offset, names)} strides {entries_text(scale.strides, names)}"
    return f"{entries_text(scale.extent, names)} from {entries_text(scale.start, names)} {place}"


def _differ_in_route(old: Ends, new: Ends, numbers: IntArray) -> bool:
    one, other = old.edge, new.edge
    if one.nearest != other.nearest or (one.window is None) != (other.window is None):
        return True
    try:
        first, second = _route_rows(old, numbers), _route_rows(new, numbers)
    except ExpressionError:
        return (one.turn, one.window) != (other.turn, other.window)
    return not _same_rows(first, second)


def _route_rows(ends: Ends, numbers: IntArray) -> IntArray:
    """For every receiver instance: its tensor and rank, the window, and the turn."""
    edge, half = ends.edge, ends.edge.receiver
    keys, rows = _members(edge, ends.rows(half), numbers)
    window = [*edge.window.start, *edge.window.extent] if edge.window else []
    turn = Rows(rows.values, rows.count, ends.schedule).array([edge.turn])
    own = rows.array(window)
    return np.concatenate([keys, rows.values["rank"][:, np.newaxis], own, turn], axis=1)


def _route(edge: Edge, names: Renaming) -> str:
    nearest = " of the nearest" if edge.nearest else ""
    return f"holder {entry_text(edge.turn, names)}{nearest}"


def _window(edge: Edge, names: Renaming) -> str:
    window = edge.window
    if window is None:
        return "all at once"
    return f"{entries_text(window.extent, names)} from {entries_text(window.start, names)}"


def _distinguished(old: str, new: str) -> tuple[str, str]:
    return (old, new) if old != new else (f"{old}, by the old table", f"{new}, by the new one")


@dataclass(frozen=True)
class Rounds:
    """The rounds of some tensors: their numbers `[n, k]`, first and last round `[n]` of each."""

    numbers: IntArray
    first: IntArray
    last: IntArray


def rounds_of(ends: Sequence[Ends], numbers: IntArray) -> Rounds:
    """Find when edges move their tensors.

    Raises:
        ExpressionError: a round has no value.
    """
    first = np.full(len(numbers), np.iinfo(np.int64).max)
    last = np.full(len(numbers), -1, dtype=np.int64)
    for own in ends:
        keys, rows = _members(own.edge, own.rows(own.edge.receiver), numbers)
        rounds = Rows(rows.values, rows.count, own.schedule).array([own.edge.round])[:, 0]
        codes = row_codes(np.concatenate([numbers, keys]))
        order = np.argsort(codes[: len(numbers)])
        place = order[np.searchsorted(codes[: len(numbers)], codes[len(numbers) :], sorter=order)]
        np.minimum.at(first, place, rounds)
        np.maximum.at(last, place, rounds)
    return Rounds(numbers, first, last)

"""In words, how the pieces of a buffer differ from what they were."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tranship.compiler.diffs.contents import Mask, Members
from tranship.compiler.diffs.wording import (
    Renaming,
    entries_text,
    entry_text,
    renaming,
    short,
)
from tranship.schema.manifest import Part, Piece
from tranship.schema.template import parse_template


@dataclass(frozen=True, slots=True)
class Finding:
    """A property that is different: `kind`, what it was and is, and which part it is of."""

    kind: str
    old: str | None
    new: str | None
    detail: str = ""


def piece_findings(old: Members, new: Members, rows: Mask) -> Iterator[Finding]:
    """Say how pieces differ in `rows`, which are known to differ in some of them."""
    order = _order(old, rows), _order(new, rows)
    reordered = order[0] != order[1] and set(order[0]) == set(order[1])
    if reordered:
        yield Finding("order", *(", ".join(names) for names in order))
    found = list(_one_by_one(old, new, reordered=reordered))
    if any(one.kind == "box" for one in found):
        found = [one for one in found if not _follows(one)]
    yield from found
    if not found and not reordered:
        yield Finding("pieces", "as its shape and tables had them", "as they have them now")


def _follows(found: Finding) -> bool:
    """Whether a piece begins elsewhere because those before it have another size."""
    return found.kind == "place" and "strides" not in f"{found.old}{found.new}"


def _order(own: Members, rows: Mask) -> tuple[str, ...]:
    """The tensors of a buffer by where they begin, in the first of some rows."""
    first = own.rows.take(np.flatnonzero(rows)[:1])
    begins: list[tuple[int, str]] = []
    for piece in own.family.pieces:
        _, inside = first.join(piece.indices, piece.at)
        inside = inside.take(np.flatnonzero((inside.array(piece.extent) > 0).all(axis=1)))
        if inside.count:
            begins.append((int(inside.array([piece.offset]).min()), short(piece.tensor)))
    return tuple(dict.fromkeys(name for _, name in sorted(begins)))


def _one_by_one(old: Members, new: Members, *, reordered: bool) -> Iterator[Finding]:
    before, after = _by_tensor(old.family.pieces), _by_tensor(new.family.pieces)
    scope = renaming(old.family.name, new.family.name)
    for key in [*after, *(key for key in before if key not in after)]:
        first, second = before.get(key, []), after.get(key, [])
        for one, other in zip(first, second, strict=False):
            names = {**scope, **renaming(one.tensor, other.tensor)}
            yield from _piece(one, other, names, reordered=reordered)
        for gone in first[len(second) :]:
            yield Finding("holds", gone.tensor, None)
        for added in second[len(first) :]:
            yield Finding("holds", None, added.tensor)


def _by_tensor(pieces: Sequence[Piece]) -> dict[tuple[tuple[str, ...], Part], list[Piece]]:
    found: dict[tuple[tuple[str, ...], Part], list[Piece]] = {}
    for piece in pieces:
        found.setdefault((parse_template(piece.tensor).texts, piece.part), []).append(piece)
    return found


def _piece(one: Piece, other: Piece, names: Renaming, *, reordered: bool) -> Iterator[Finding]:
    what = short(other.tensor)
    boxes = _box(one, names), _box(other, {})
    if boxes[0] != boxes[1]:
        yield Finding("box", *boxes, what)
    moved = _strides(one, names) != _strides(other, {})
    places = _place(one, names, moved=moved), _place(other, {}, moved=moved)
    if places[0] != places[1] and not reordered:
        yield Finding("place", *places, what)
    repeated = list(one.indices.values()) != list(other.indices.values())
    conditions = _where(one, names, repeated=repeated), _where(other, {}, repeated=repeated)
    if conditions[0] != conditions[1]:
        yield Finding("where", *conditions, what)


def _box(piece: Piece, names: Renaming) -> str:
    start, extent = entries_text(piece.start, names), entries_text(piece.extent, names)
    step = f" step {list(piece.step)}" if piece.step and set(piece.step) != {1} else ""
    origin = entries_text(piece.origin, names) if piece.origin else ""
    grid = f" blocks from {origin}" if origin.strip("[0, ]") else ""
    unit = "blocks " if piece.part is Part.SCALE else ""
    return f"{unit}{extent} from {start}{step}{grid}"


def _place(piece: Piece, names: Renaming, *, moved: bool) -> str:
    return f"offset {entry_text(piece.offset, names)}{_strides(piece, names) if moved else ''}"


def _strides(piece: Piece, names: Renaming) -> str:
    return f" strides {entries_text(piece.strides, names)}" if piece.strides else ""


def _where(piece: Piece, names: Renaming, *, repeated: bool) -> str:
    """Say where a piece is, and (`repeated`) for which of its own indices."""
    parts = [f"{axis} = {entry_text(value, names)}" for axis, value in piece.at.items()]
    if repeated:
        parts += [
            f"{entry_text(name, names)} in {chosen}" for name, chosen in piece.indices.items()
        ]
    return ", ".join(parts) or "everywhere"

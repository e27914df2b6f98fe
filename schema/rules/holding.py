"""A sender holds every tensor completely, and a receiver has a use for each that it declares.

Both are asked of manifests that speak for all ranks. A tied tensor is held, or used, where the
tensor that it is tied to is.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from tranship.schema.canonical import Path
from tranship.schema.expression import Expression, IntArray, Variable, evaluate, substitute
from tranship.schema.expression import variables as variables_of
from tranship.schema.manifest import Part, Side, TensorFamily
from tranship.schema.records import Ints
from tranship.schema.rows import number_rows, spread
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.memory import BoolArray
from tranship.schema.rules.nametables import split_name
from tranship.schema.rules.piece_rows import box_names, piece_rows
from tranship.schema.rules.subject import PieceSite, Subject, Texts, example
from tranship.schema.rules.union import SteppedBox, box_of, find_gap
from tranship.schema.rules.world import (
    Keys,
    Places,
    find_places,
    names_in_template,
    speaks_for_all,
)


def complete(subject: Subject) -> Iterator[Finding]:
    """Find tensors of which no rank of the sender holds some element."""
    if subject.manifest.side is not Side.SENDER or not speaks_for_all(subject.manifest):
        return
    for group in _groups(subject):
        yield from _incomplete(subject, group)


@dataclass(frozen=True)
class Holding:
    """A piece that holds tensors of a group: which, as one expression for each number in the name.

    Where the piece is of a tied tensor, `tied` is that family, and the numbers are its target's.
    """

    site: PieceSite
    numbers: tuple[Expression, ...]
    tied: int | None = None


@dataclass(frozen=True)
class Group:
    """Tensors whose names have the same texts, without those tied to others, and their holdings."""

    tensors: Mapping[int, TensorFamily]
    holdings: tuple[Holding, ...]

    def told_apart_by(self) -> tuple[int, ...]:
        """Positions of the numbers on which it may depend what is held of a tensor.

        Other numbers take the same values in all families and all pieces, and no piece reads them:
        what is held of one tensor is then held of all that differ in these numbers alone.
        """
        names = [split_name(tensor.name).holes for tensor in self.tensors.values()]
        sets = [
            [_values(hole, tensor.indices) for hole in holes]
            for tensor, holes in zip(self.tensors.values(), names, strict=True)
        ]
        for holding in self.holdings:
            read = box_names(holding.site)
            free = [_values(hole, holding.site.indices) for hole in holding.numbers]
            sets.append(
                [
                    None if holding.tied is not None or variables_of(hole) & read else values
                    for hole, values in zip(holding.numbers, free, strict=True)
                ]
            )
        return tuple(
            n
            for n, some in enumerate(zip(*sets, strict=True))
            if None in some or len(set(some)) > 1
        )


def _values(hole: Expression, indices: Mapping[str, str]) -> str | None:
    """The index set that a plain hole goes through; None for an expression or a number."""
    return indices[hole.name] if isinstance(hole, Variable) else None


def _groups(subject: Subject) -> Iterator[Group]:
    tensors = defaultdict[Texts, dict[int, TensorFamily]](dict)
    for number, tensor in enumerate(subject.manifest.tensors):
        if tensor.tied_to is None:
            tensors[split_name(tensor.name).texts][number] = tensor
    holdings = defaultdict[Texts, list[Holding]](list)
    for site in _value_pieces(subject):
        for texts, holding in _holdings(subject, site):
            holdings[texts].append(holding)
    for texts, some in tensors.items():
        yield Group(some, tuple(holdings[texts]))


def _value_pieces(subject: Subject) -> Iterator[PieceSite]:
    return (site for site in subject.pieces if site.piece.part is Part.VALUE)


def _holdings(subject: Subject, site: PieceSite) -> Iterator[tuple[Texts, Holding]]:
    """What a piece holds: tensors of its own name, and those that they are tied to."""
    own = split_name(site.piece.tensor)
    yield own.texts, Holding(site, own.holes)
    for number in subject.owners(site):
        tensor = subject.manifest.tensors[number]
        if tensor.tied_to is not None:
            given = zip(split_name(tensor.name).holes, own.holes, strict=True)
            replaced = {hole.name: by for hole, by in given if isinstance(hole, Variable)}
            target = split_name(tensor.tied_to)
            numbers = tuple(substitute(hole, replaced) for hole in target.holes)
            yield target.texts, Holding(site, numbers, number)


@dataclass(frozen=True)
class Wanted:
    """The tensors of a group, one row for all of which the same is held.

    The parts of `keys` are the numbers that tell them apart. Row `i` is row `row[i]` of the
    `places` of family `family[i]`, and has `size[i]` elements.
    """

    places: Mapping[int, Places]
    keys: Keys
    family: IntArray
    row: IntArray
    size: IntArray


def _wanted(subject: Subject, group: Group, kept: Sequence[int]) -> Wanted:
    places, keys = dict[int, Places](), list[list[IntArray]]()
    for number, tensor in group.tensors.items():
        holes = [split_name(tensor.name).holes[n] for n in kept]
        read = frozenset[str]().union(*(variables_of(hole) for hole in holes))
        places[number] = find_places(subject.world, tensor.indices, (), read)
        keys.append(_evaluate(subject, holes, places[number]))
    counts = [found.rows for found in places.values()]
    sizes = [prod(tensor.shape) for tensor in group.tensors.values()]
    return Wanted(
        places,
        Keys(tuple(np.concatenate(part) for part in zip(*keys, strict=True)), sum(counts)),
        np.repeat(np.array(list(group.tensors), dtype=np.int64), counts),
        np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
        np.repeat(np.array(sizes, dtype=np.int64), counts),
    )


def _evaluate(subject: Subject, holes: Sequence[Expression], places: Places) -> list[IntArray]:
    tables = subject.world.tables
    return [spread(evaluate(hole, places.environment, tables), places.rows) for hole in holes]


def _incomplete(subject: Subject, group: Group) -> Iterator[Finding]:
    kept = group.told_apart_by()
    wanted = _wanted(subject, group, kept)
    whole = wanted.size == 0
    boxes = defaultdict[int, set[SteppedBox]](set)
    for holding in group.holdings:
        _collect(subject, holding, kept, wanted, whole, boxes)
    examined, reported = set[object](), set[int]()
    for row in np.flatnonzero(~whole).tolist():
        family = int(wanted.family[row])
        key = family, frozenset(boxes[row])
        if family in reported or key in examined:
            continue
        examined.add(key)
        tensor, places = group.tensors[family], wanted.places[family]
        name = example(tensor.name, places, int(wanted.row[row]), subject.world)
        for finding in _gap(name, ("tensors", family, "name"), tensor.shape, boxes[row]):
            reported.add(family)
            yield finding


def _collect(
    subject: Subject,
    holding: Holding,
    kept: Sequence[int],
    wanted: Wanted,
    whole: BoolArray,
    boxes: defaultdict[int, set[SteppedBox]],
) -> None:
    """Add what a piece holds: mark tensors that it holds whole, and note boxes of the others."""
    holes = [holding.numbers[n] for n in kept]
    read = frozenset[str]().union(*(variables_of(hole) for hole in holes))
    if holding.tied is not None:
        read |= names_in_template(holding.site.piece.tensor)
    rows = piece_rows(subject, holding.site, read)
    if holding.tied is not None:
        named = subject.find_tensor(holding.site.piece.tensor, rows.places)
        table = subject.tensor_tables[split_name(holding.site.piece.tensor).texts]
        rows = rows.take(np.flatnonzero(table.owner[named] == holding.tied))
    tensor = wanted.keys.find(_evaluate(subject, holes, rows.places), rows.places.rows)
    rows, tensor = rows.take(np.flatnonzero(tensor >= 0)), tensor[tensor >= 0]
    is_whole = rows.box.volume == wanted.size[tensor]
    whole[tensor[is_whole]] = True
    some = np.flatnonzero(~whole[tensor] & rows.box.occupied)
    box = rows.box.take(some)
    every = [tensor[some], *box.start.T, *box.extent.T]
    for one in np.unique(number_rows(every, len(some)), return_index=True)[1]:
        boxes[int(tensor[some[one]])].add(box_of(box.start[one], box.extent[one], box.step))


def _gap(name: str, path: Path, shape: Ints, boxes: set[SteppedBox]) -> Iterator[Finding]:
    try:
        gap = find_gap(shape, sorted(boxes))
    except OverflowError as error:
        message = f"it cannot be decided whether tensor {name} is held: {error}"
        yield Finding("TS168", path, message)
        return
    if gap is not None:
        yield Finding(
            "TS188",
            path,
            f"{gap.count:,} of the {prod(shape):,} elements of tensor {name} are on no rank",
            expected="every element in a piece on at least one rank",
            found=f"element {list(gap.element)} is in none" if boxes else "no piece at all",
            help="declare the pieces that hold it: buffers count as much as parameters, and names "
            "that count from 0 on every rank need that rank's offset",
        )


def used(subject: Subject) -> Iterator[Finding]:
    """Find tensors with elements that a receiver declares, and no buffer holds a piece of."""
    if subject.manifest.side is not Side.RECEIVER or not speaks_for_all(subject.manifest):
        return
    marks = {
        texts: np.zeros(table.rows, dtype=bool) for texts, table in subject.tensor_tables.items()
    }
    for site in _value_pieces(subject):
        rows = subject.find_tensor(site.piece.tensor, subject.piece_names(site))
        marks[split_name(site.piece.tensor).texts][rows] = True
    _share_marks(subject, marks)
    empty = [n for n, tensor in enumerate(subject.manifest.tensors) if 0 in tensor.shape]
    for texts, table in subject.tensor_tables.items():
        unused = np.flatnonzero(~marks[texts] & ~np.isin(table.owner, empty))
        for one in np.unique(table.owner[unused], return_index=True)[1]:
            row = int(unused[one])
            owner = int(table.owner[row])
            name = subject.manifest.tensors[owner].name
            what = example(name, table.places[owner], int(table.place[row]), subject.world)
            yield Finding(
                "TS189",
                ("tensors", owner, "name"),
                f"no buffer holds a piece of tensor {what}",
                expected="at least one piece of every tensor that is declared",
                help="declare the buffer that takes it, or take the tensor out of the manifest",
            )


def _share_marks(subject: Subject, marks: Mapping[Texts, BoolArray]) -> None:
    """A tensor tied to a used one is used, and so is the one that a used one is tied to."""
    for from_tied in (True, False):
        for tensor in subject.manifest.tensors:
            if tensor.tied_to is None:
                continue
            places = find_places(subject.world, tensor.indices, (), frozenset(tensor.indices))
            own, other = (
                (marks[split_name(name).texts], subject.find_tensor(name, places))
                for name in (tensor.name, tensor.tied_to)
            )
            source, target = (own, other) if from_tied else (other, own)
            np.logical_or.at(target[0], target[1], source[0][source[1]])

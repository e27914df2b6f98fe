"""Tensors: every name declared once, ties that lead to an untied tensor of the same shape."""

from collections.abc import Iterator
from math import prod

import numpy as np

from tranship.schema.canonical import Path
from tranship.schema.manifest import IntExpression, TensorFamily
from tranship.schema.rules.expressions import references
from tranship.schema.rules.findings import Finding
from tranship.schema.rules.nametables import MAX_NUMBER, name_of, numbers_of, split_name
from tranship.schema.rules.subject import Subject, example
from tranship.schema.rules.world import World, find_places, names_in_template


def numbers_in_names(subject: Subject) -> Iterator[Finding]:
    """Find holes of names whose value is negative, or of more digits than a name may have."""
    for number, tensor in enumerate(subject.manifest.tensors):
        path = ("tensors", number)
        yield from _numbers((*path, "name"), tensor.name, tensor.indices, subject.world)
        if tensor.tied_to is not None:
            yield from _numbers((*path, "tied_to"), tensor.tied_to, tensor.indices, subject.world)
    for number, buffer in enumerate(subject.manifest.buffers):
        path = ("buffers", number)
        for inner, text in (("name",), buffer.name), *references(buffer):
            yield from _numbers(path + inner, text, buffer.indices, subject.world)


def _numbers(path: Path, text: str, indices: dict[str, str], world: World) -> Iterator[Finding]:
    if not names_in_template(text):
        return
    places = find_places(world, indices, (), names_in_template(text))
    for values in numbers_of(text, places, world):
        wrong = np.flatnonzero((values < 0) | (values > MAX_NUMBER))
        if len(wrong):
            yield Finding(
                "TS139",
                path,
                f"a hole of {text!r} is {int(values[wrong[0]])}",
                expected=f"a number from 0 to {MAX_NUMBER}",
                found=str(int(values[wrong[0]])),
            )
            return


def tensors(subject: Subject) -> Iterator[Finding]:
    """Check that tensors are declared once, have a possible size, and are tied as they should."""
    for texts, table in subject.tensor_tables.items():
        for first, second in table.repeats():
            earlier, later = int(table.owner[first]), int(table.owner[second])
            yield Finding(
                "TS154",
                ("tensors", later, "name"),
                f"tensor {name_of(texts, table.keys.parts, second)!r} is declared twice",
                first=("tensors", earlier, "name"),
            )
    for number, tensor in enumerate(subject.manifest.tensors):
        if prod(tensor.shape) >= 2**62:
            yield Finding(
                "TS155",
                ("tensors", number, "shape"),
                f"tensor {tensor.name!r} has {prod(tensor.shape):,} elements",
                expected="fewer than 2**62",
            )
        if tensor.tied_to is not None:
            yield from _tie(subject, ("tensors", number, "tied_to"), tensor, tensor.tied_to)


def _tie(subject: Subject, path: Path, tensor: TensorFamily, target: str) -> Iterator[Finding]:
    places = find_places(subject.world, tensor.indices, (), frozenset(tensor.indices))
    rows = subject.find_tensor(target, places)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        what = example(target, places, int(missing[0]), subject.world)
        yield Finding("TS156", path, f"{tensor.name!r} is tied to {what}, which is not declared")
        return
    table = subject.tensor_tables[split_name(target).texts]
    owners: list[int] = np.unique(table.owner[rows]).tolist()
    for owner in owners:
        other = subject.manifest.tensors[owner]
        if other.tied_to is not None:
            yield Finding(
                "TS157",
                path,
                f"{tensor.name!r} is tied to {other.name!r}, which is tied itself",
                expected="a tensor without tied_to",
                found=f"tied to {other.tied_to!r}",
                suggestion=other.tied_to if other is not tensor else None,
            )
        elif other.shape != tensor.shape:
            yield Finding(
                "TS157",
                path,
                f"{tensor.name!r} is tied to {other.name!r}, which has another shape",
                expected=str(list(tensor.shape)),
                found=str(list(other.shape)),
            )


def tensors_of_pieces(subject: Subject) -> Iterator[Finding]:
    """Find pieces of tensors that are not declared."""
    for site in subject.pieces:
        if -1 not in subject.owners(site):
            continue
        places = subject.piece_names(site)
        row = int(np.flatnonzero(subject.find_tensor(site.piece.tensor, places) < 0)[0])
        what = example(site.piece.tensor, places, row, subject.world)
        yield Finding(
            "TS158",
            (*site.path, "tensor"),
            f"a piece of buffer {site.buffer.name!r} is of tensor {what}, which is not declared",
            help="declare the tensor under `tensors`, or correct the name or the indices",
        )


def dims(subject: Subject) -> Iterator[Finding]:
    """Check that every list of one entry per dim has as many as its tensor or buffer has dims."""
    for number, buffer in enumerate(subject.manifest.buffers):
        path = ("buffers", number)
        yield from _length((*path, "strides"), buffer.strides, len(buffer.shape), "buffer")
        for place, fill in enumerate(buffer.fills):
            inner = (*path, "fills", place, "strides")
            yield from _length(inner, fill.strides, len(fill.sizes), "fill")
    for site in subject.pieces:
        for tensor in subject.tensors(site)[:1]:
            for name in ("start", "extent", "step", "strides", "origin"):
                entries = getattr(site.piece, name)
                yield from _length((*site.path, name), entries, len(tensor.shape), "tensor")
            if site.piece.strides is None and len(site.buffer.shape) < len(tensor.shape):
                yield Finding(
                    "TS160",
                    site.path,
                    "the piece has no strides, and more dims than its buffer to take them from",
                    expected=f"strides, as the tensor has shape {list(tensor.shape)}",
                    found=f"a buffer of shape {list(site.buffer.shape)}",
                )
        yield from _one_rank(subject, site.path, subject.tensors(site))


def _length(
    path: Path, entries: tuple[IntExpression, ...] | None, dims: int, what: str
) -> Iterator[Finding]:
    if entries is not None and len(entries) != dims:
        yield Finding(
            "TS159",
            path,
            f"{path[-1]} does not have one entry for each dim of the {what}",
            expected=f"length {dims}",
            found=f"length {len(entries)}",
        )


def _one_rank(subject: Subject, path: Path, owners: list[TensorFamily]) -> Iterator[Finding]:
    counts = sorted({len(tensor.shape) for tensor in owners})
    if len(counts) > 1:
        found = " and ".join(str(count) for count in counts)
        yield Finding(
            "TS159", path, "the piece is of tensors with different numbers of dims", found=found
        )

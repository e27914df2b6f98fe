"""What of a plan or a manifest is about tensors or buffers of some names.

A pattern is compared with names as they are written (`model.layers.{layer}.mlp.*`) and with those
that they stand for (`model.layers.7.mlp.*`).
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

import numpy as np

from tranship.schema.expression import ExpressionError, IntArray, evaluate
from tranship.schema.manifest import BufferFamily, Manifest
from tranship.schema.mesh import table_arrays
from tranship.schema.moves import grid_size, index_grid
from tranship.schema.plan import Edge, Half, TransferPlan
from tranship.schema.template import parse_template

Indices = Mapping[str, str]
Lookup = Mapping[str, IntArray]


def select_from_plan(plan: TransferPlan, pattern: str) -> TransferPlan:
    """Keep the edges, fills and steps that read or write what `pattern` matches."""
    lookup = table_arrays(plan.receiver.tables)
    changes = {
        "edges": tuple(edge for edge in plan.edges if _edge_matches(edge, plan, pattern)),
        **{
            field: tuple(
                one
                for one in getattr(plan, field)
                if _matches([one.buffer], one.indices, lookup, pattern)
            )
            for field in ("fills", "derived")
        },
        "unused": tuple(one for one in plan.unused if fnmatchcase(one.tensor, pattern)),
    }
    return plan.model_copy(update=changes)


def _edge_matches(edge: Edge, plan: TransferPlan, pattern: str) -> bool:
    if _matches([edge.tensor, edge.source or edge.tensor], edge.indices, {}, pattern):
        return True
    return any(
        _matches(_buffers(half), {**edge.indices, **half.indices}, table_arrays(tables), pattern)
        for half, tables in (
            (edge.sender, plan.sender.tables),
            (edge.receiver, plan.receiver.tables),
        )
    )


def _buffers(half: Half) -> list[str]:
    return [half.buffer, half.scale.buffer] if half.scale else [half.buffer]


def select_from_manifest(manifest: Manifest, pattern: str) -> Manifest:
    """Keep the tensors that `pattern` matches, and the buffers that match or hold them."""
    lookup = table_arrays(manifest.tables)
    tensors = tuple(
        family
        for family in manifest.tensors
        if _matches([family.name], family.indices, lookup, pattern)
    )
    buffers = tuple(one for one in manifest.buffers if _buffer_matches(one, lookup, pattern))
    return manifest.model_copy(update={"tensors": tensors, "buffers": buffers})


def _buffer_matches(family: BufferFamily, lookup: Lookup, pattern: str) -> bool:
    return _matches([family.name], family.indices, lookup, pattern) or any(
        _matches([piece.tensor], {**family.indices, **piece.indices}, lookup, pattern)
        for piece in family.pieces
    )


def _matches(names: Iterable[str], indices: Indices, lookup: Lookup, pattern: str) -> bool:
    return any(
        fnmatchcase(member, pattern) for name in names for member in _members(name, indices, lookup)
    )


def _members(name: str, indices: Indices, lookup: Lookup) -> Iterator[str]:
    """Yield a name as it is written, then what it stands for, unless that depends on the rank."""
    yield name
    template, grid = parse_template(name), index_grid(indices)
    try:
        holes = [evaluate(hole, grid, lookup) for hole in template.holes]
    except ExpressionError:
        return
    count = grid_size(indices)
    columns = [np.broadcast_to(np.asarray(hole), (count,)).tolist() for hole in holes]
    for numbers in zip(*columns, strict=True):
        parts = [*(str(number) for number in numbers), ""]
        yield "".join(text + part for text, part in zip(template.texts, parts, strict=True))

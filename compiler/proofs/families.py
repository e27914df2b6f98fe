"""Families of tensors as a manifest writes them, which is what the policy speaks of."""

from collections.abc import Collection

from tranship.compiler.proofs.lookup import names_of
from tranship.schema.manifest import Manifest
from tranship.schema.mesh import table_arrays
from tranship.schema.moves import grid_size, index_grid
from tranship.schema.template import parse_template

Texts = tuple[str, ...]
"""A name without what is in its braces."""


def families(manifest: Manifest, names: Collection[str]) -> dict[str, Texts]:
    """The family of each of `names` that the manifest declares."""
    lookup, found = table_arrays(manifest.tables), dict[str, Texts]()
    for family in manifest.tensors if names else ():
        count = grid_size(family.indices)
        texts = parse_template(family.name).texts
        members = names_of(family.name, index_grid(family.indices), lookup, count)
        found |= {name: texts for name in members if name in names}
    return found


def spellings(manifest: Manifest, texts: Texts) -> tuple[str, ...]:
    """A family's names as the manifest writes them, in families and in pieces."""
    declared = [family.name for family in manifest.tensors]
    pieces = [piece.tensor for buffer in manifest.buffers for piece in buffer.pieces]
    every = dict.fromkeys([*declared, *pieces])
    return tuple(name for name in every if parse_template(name).texts == texts)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern of the policy matches a family's name: `*` is any text."""
    first, *rest = pattern.split("*")
    if not rest or not name.startswith(first):
        return name == pattern
    position, last = len(first), rest.pop()
    for part in rest:
        found = name.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return name.endswith(last) and len(name) - len(last) >= position

"""Two manifests: everything that one side declares, before and after."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from tranship.compiler.diffs.buffers import Families, buffer_changes, side_of
from tranship.compiler.diffs.change import Change, Weight
from tranship.compiler.diffs.extras import as_text, extra_changes
from tranship.compiler.diffs.quantization import quantization_changes
from tranship.compiler.diffs.rows import same_mesh, worlds
from tranship.compiler.diffs.sides import side_changes
from tranship.compiler.diffs.tensors import tensor_changes
from tranship.schema.expand import declared_ranks
from tranship.schema.expression import ExpressionError, IntArray
from tranship.schema.manifest import BufferFamily, Manifest

_KNOWN = frozenset(
    {
        "format",
        "side",
        "framework",
        "world_size",
        "ranks",
        "axes",
        "tables",
        "tensors",
        "buffers",
        "quantization",
    }
)


def manifest_changes(old: Manifest, new: Manifest) -> Iterator[Change]:
    """Compare two manifests without errors (`schema/check.py` finds them).

    Raises:
        ExpressionError: an expression has no value.
    """
    yield from _heads(old, new)
    same_tables = old.tables == new.tables
    yield from tensor_changes(old, new, same_tables=same_tables)
    families = _apart(old, new, same_tables=same_tables)
    before, after = worlds(old, new, _common_ranks(old, new))
    try:
        changes = list(buffer_changes(side_of(families[0], before), side_of(families[1], after)))
    except ExpressionError:
        # The old rules need not have values on a mesh that they were not written for.
        if same_mesh(old, new):
            raise
        changes = list(_as_written(*families))
    yield from changes


def _heads(old: Manifest, new: Manifest) -> Iterator[Change]:
    if old.side != new.side:
        yield Change("side", Weight.CHANGE, "manifest", old.side, new.side, pointer="/side")
    yield from _framework(old, new)
    yield from quantization_changes(old, new)
    yield from extra_changes(old, new, _KNOWN, "manifest", new.side, "")
    yield from side_changes(old, new, new.side, "")
    if declared_ranks(old) != declared_ranks(new) and old.world_size == new.world_size:
        spoken = old.ranks or "all", new.ranks or "all"
        yield Change("ranks.declared", Weight.CHANGE, new.side, *spoken, pointer="/ranks")


def _framework(old: Manifest, new: Manifest) -> Iterator[Change]:
    before, after = _software(old), _software(new)
    for name in [*after, *(name for name in before if name not in after)]:
        if before.get(name) != after.get(name):
            texts = as_text(before.get(name)), as_text(after.get(name))
            pointer = "/framework" if name in after else ""
            yield Change(f"framework.{name}", Weight.NOTE, new.side, *texts, pointer=pointer)


def _software(manifest: Manifest) -> dict[str, object]:
    """List what is said of the framework, its options one by one."""
    if manifest.framework is None:
        return {}
    fields = manifest.framework.model_dump(mode="json", exclude_defaults=True)
    options: dict[str, object] = fields.pop("options", {})
    return {**fields, **{f"option {name}": value for name, value in options.items()}}


def _common_ranks(old: Manifest, new: Manifest) -> IntArray:
    ranks = set(declared_ranks(new))
    if old.world_size == new.world_size:
        ranks &= set(declared_ranks(old))
    return np.array(sorted(ranks), dtype=np.int64)


def _apart(old: Manifest, new: Manifest, *, same_tables: bool) -> tuple[Families, Families]:
    """Leave out the families that both have, word for word and with the same tables."""
    texts = [[family.model_dump_json() for family in one.buffers] for one in (old, new)]
    both = Counter(texts[0]) & Counter(texts[1]) if same_tables else Counter[str]()
    return _without(old, texts[0], both), _without(new, texts[1], both)


def _without(manifest: Manifest, texts: list[str], both: Counter[str]) -> Families:
    left = Counter(both)
    found: list[tuple[int, BufferFamily]] = []
    for number, (family, text) in enumerate(zip(manifest.buffers, texts, strict=True)):
        if left[text]:
            left[text] -= 1
        else:
            found.append((number, family))
    return found


def _as_written(old: Families, new: Families) -> Iterator[Change]:
    for number, family in new:
        text = family.model_dump_json(exclude_defaults=True)
        yield Change("buffer", Weight.CHANGE, family.name, None, text, pointer=f"/buffers/{number}")
    for number, family in old:
        text = family.model_dump_json(exclude_defaults=True)
        yield Change("buffer", Weight.CHANGE, family.name, text, None, pointer=f"/buffers/{number}")

"""Everything that a buffer family says of its members, compared field by field."""

from collections.abc import Iterator, Sequence

import numpy as np

from tranship.compiler.diffs.change import Weight
from tranship.compiler.diffs.contents import Mask, Members, differing, fills_of, pieces_of
from tranship.compiler.diffs.extras import as_text, extras
from tranship.compiler.diffs.names import name_columns
from tranship.compiler.diffs.pieces import Finding, piece_findings
from tranship.compiler.diffs.wording import (
    Renaming,
    entries_text,
    entry_text,
    renaming,
    side_by_side,
)
from tranship.schema.expression import IntArray, Variable
from tranship.schema.manifest import (
    Alias,
    BufferFamily,
    ConstantBuffer,
    Derived,
    Encoding,
    Fill,
    Role,
    Scale,
    Scaled,
    Transfer,
)
from tranship.schema.members import Rows
from tranship.schema.template import parse_template

Found = tuple[Finding, Mask, Weight]

_KNOWN = frozenset(BufferFamily.model_fields) & {
    "name", "indices", "at", "dtype", "shape", "strides", "kind", "role", "encoding", "layout",
    "pieces", "fills",
}  # fmt: skip


def field_findings(old: Members, new: Members) -> Iterator[Found]:
    """Compare two families in rows that they have in common, pair by pair.

    Returns:
        What is different, in which of the rows, and how much it matters.

    Raises:
        ExpressionError: an expression has no value.
    """
    one, other = old.family, new.family
    every = np.ones(old.rows.count, dtype=np.bool_)
    for found, weight in _plain_fields(one, other):
        yield found, every, weight
    yield from _numbers(old, new)
    for kind, before, after in _references(one, other):
        yield from _reference(kind, (before, old.rows), (after, new.rows), old, new)
    if _differ_in(old, new, "pieces"):
        rows = differing(old, new, pieces_of)
        if rows.any():
            for found in piece_findings(old, new, rows):
                yield found, rows, Weight.CHANGE
    if _differ_in(old, new, "fills"):
        rows = differing(old, new, fills_of)
        if rows.any():
            yield _fills(one, other), rows, _fill_weight(one.fills, other.fills)


def _plain_fields(one: BufferFamily, other: BufferFamily) -> Iterator[tuple[Finding, Weight]]:
    """Compare what is the same for all members of a family."""
    if one.dtype != other.dtype:
        yield Finding("dtype", one.dtype.value, other.dtype.value), Weight.CHANGE
    if one.kind != other.kind:
        yield Finding("kind", one.kind.value, other.kind.value), Weight.NOTE
    if one.layout != other.layout:
        yield Finding("layout", one.layout, other.layout), Weight.CHANGE
    roles = role_text(one.role), role_text(other.role)
    if roles[0] != roles[1]:
        yield Finding("role", *roles), _role_weight(one.role, other.role)
    yield from ((found, Weight.CHANGE) for found in _encodings(one.encoding, other.encoding))
    before, after = extras(one, _KNOWN), extras(other, _KNOWN)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            texts = as_text(before.get(name)), as_text(after.get(name))
            yield Finding(name, *texts), Weight.CHANGE


def _encodings(one: Encoding, other: Encoding) -> Iterator[Finding]:
    texts = encoding_text(one), encoding_text(other)
    if not (isinstance(one, Scaled) and isinstance(other, Scaled)):
        if texts[0] != texts[1]:
            yield Finding("encoding", *texts)
        return
    blocks = _block_text(one), _block_text(other)
    if blocks[0] != blocks[1]:
        yield Finding("blocks", *blocks)
    if one.scale_values != other.scale_values:
        yield Finding("scale_values", _VALUES[one.scale_values], _VALUES[other.scale_values])


def _block_text(encoding: Scaled) -> str:
    return " x ".join(str(size) for size in encoding.block)


def role_text(role: Role) -> str:
    """Say what may happen to a buffer, without the names of other buffers."""
    match role:
        case Derived(recipe=recipe, inputs=inputs):
            return f"derived by {recipe} from {len(inputs)}"
        case ConstantBuffer(reason=reason):
            return f"constant: {reason}"
        case _:
            return role.kind


def _role_weight(old: Role, new: Role) -> Weight:
    if old.kind == new.kind == "constant":
        return Weight.NOTE
    stops = isinstance(old, Transfer | Derived) and isinstance(new, ConstantBuffer)
    return Weight.GRANT if stops else Weight.CHANGE


def encoding_text(encoding: Encoding) -> str:
    """Say how values are stored, without the names of other buffers."""
    match encoding:
        case Scaled(scale_values=accepted):
            return f"scaled in blocks of {_block_text(encoding)}, {_VALUES[accepted]}"
        case _:
            return encoding.kind


_VALUES = {"any": "any scale", "power_of_two": "powers of two"}


def _numbers(old: Members, new: Members) -> Iterator[Found]:
    one, other = old.family, new.family
    names = renaming(one.name, other.name)
    if not _differ_in(old, new, "shape") and not _differ_in(old, new, "strides"):
        return
    shapes = old.rows.array(one.shape), new.rows.array(other.shape)
    rows = _unequal(*shapes)
    if rows.any():
        texts = entries_text(one.shape, names), entries_text(other.shape, {})
        texts = side_by_side(texts, shapes[0][rows], shapes[1][rows])
        yield Finding("shape", *texts), rows, Weight.CHANGE
    rows = _unequal(old.strides, new.strides)
    if rows.any() and not (one.strides is None and other.strides is None):
        texts = _strides(one, old), _strides(other, new)
        yield Finding("strides", *texts), rows, Weight.CHANGE


def _strides(family: BufferFamily, own: Members) -> str:
    if family.strides is None:
        return f"{own.strides[0].tolist()}, contiguous" if own.rows.count else "contiguous"
    return entries_text(family.strides, {})


def _unequal(old: IntArray, new: IntArray) -> Mask:
    if old.shape != new.shape:
        return np.ones(len(old), dtype=np.bool_)
    return np.any(old != new, axis=1)


def _references(
    one: BufferFamily, other: BufferFamily
) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """List the names of other buffers that two families of like role and encoding have."""
    match one.role, other.role:
        case Derived(), Derived():
            yield "inputs", one.role.inputs, other.role.inputs
        case Alias(), Alias():
            yield "alias", [one.role.of], [other.role.of]
        case _:
            pass
    match one.encoding, other.encoding:
        case Scaled(), Scaled():
            yield "scale", [one.encoding.scale], [other.encoding.scale]
        case Scale(), Scale():
            yield "scale_of", [one.encoding.of], [other.encoding.of]
        case _:
            pass


def _reference(
    kind: str,
    old: tuple[Sequence[str], Rows],
    new: tuple[Sequence[str], Rows],
    before: Members,
    after: Members,
) -> Iterator[Found]:
    if _scope(before, after) and list(old[0]) == list(new[0]):
        return
    rows = np.zeros(before.rows.count, dtype=np.bool_)
    for one, other in zip(old[0], new[0], strict=False):
        rows |= names_differ((one, old[1]), (other, new[1]))
    rows |= len(old[0]) != len(new[0])
    if rows.any():
        yield Finding(kind, ", ".join(old[0]), ", ".join(new[0])), rows, Weight.CHANGE


def names_differ(old: tuple[str, Rows], new: tuple[str, Rows]) -> Mask:
    """Find the rows in which two names are not the same."""
    first, second = (name_columns(name, r.values, r.count, r.lookup) for name, r in (old, new))
    known = {texts: number for number, texts in enumerate(dict.fromkeys([*first[0], *second[0]]))}
    places = [
        np.array([known[texts] for texts in own[0]] or [0], dtype=np.int64)[own[1]]
        for own in (first, second)
    ]
    width = max(first[2].shape[1], second[2].shape[1])
    numbers = [_widened(own[2], width) for own in (first, second)]
    return (places[0] != places[1]) | np.any(numbers[0] != numbers[1], axis=1)


def _widened(numbers: IntArray, width: int) -> IntArray:
    more = width - numbers.shape[1]
    return np.pad(numbers, ((0, 0), (0, more)), constant_values=-1) if more else numbers


def _scope(old: Members, new: Members) -> bool:
    """Whether equal texts have equal values: the name tells every index, and tables agree."""
    if old.family.name != new.family.name:
        return False
    template = parse_template(old.family.name)
    plain = {hole.name for hole in template.holes if isinstance(hole, Variable)}
    lookups = old.rows.lookup, new.rows.lookup
    return (
        old.family.indices.keys() | new.family.indices.keys() <= plain
        and lookups[0].keys() == lookups[1].keys()
        and all(np.array_equal(table, lookups[1][name]) for name, table in lookups[0].items())
    )


def _differ_in(old: Members, new: Members, field: str) -> bool:
    """Whether a field may have other values: its text, or what its text depends on, differs."""
    fields = {"pieces": ("pieces", "shape", "strides")}.get(field, (field,))
    same = all(getattr(old.family, name) == getattr(new.family, name) for name in fields)
    return not (same and _scope(old, new))


def _fills(one: BufferFamily, other: BufferFamily) -> Finding:
    names = renaming(one.name, other.name)
    texts = [
        "; ".join(_fill_text(fill, names) for fill in family.fills) or None
        for family in (one, other)
    ]
    return Finding("fills", texts[0], texts[1])


def _fill_text(fill: Fill, names: Renaming) -> str:
    what = f"not used: {fill.reason}" if fill.value is None else f"always {fill.value}"
    sizes = entries_text(fill.sizes, names)
    return f"{sizes} at {entry_text(fill.offset, names)} {what}"


def _fill_weight(old: Sequence[Fill], new: Sequence[Fill]) -> Weight:
    """Only a reason that is worded anew changes no byte."""
    bare = [[one.model_copy(update={"reason": None}) for one in fills] for fills in (old, new)]
    return Weight.NOTE if bare[0] == bare[1] else Weight.CHANGE

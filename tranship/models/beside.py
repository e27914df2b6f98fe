"""Buffers that hold no tensors of a checkpoint: derived ones, constants and aliases."""

from collections.abc import Iterator

from tranship.models.boxes import bounds, frame_holds
from tranship.models.declared import Beside, BufferEntry
from tranship.models.frame import place
from tranship.models.language import LanguageError, Scope, expression
from tranship.models.memory import texts
from tranship.models.rules import Context
from tranship.models.words import further_names, name_of
from tranship.schema import indexset
from tranship.schema.manifest import Alias, BufferFamily, ConstantBuffer, Derived
from tranship.schema.manifest import Role as BufferRole


def apply_beside(
    entry: BufferEntry, beside: Beside, context: Context, names: frozenset[str]
) -> Iterator[BufferFamily]:
    """Declare the buffers that stand beside the tensors of a role.

    Args:
        entry: The rule.
        beside: What it says of them.
        context: The model and the mesh.
        names: The names of the buffers that hold tensors; inputs that are not among them, such as
            scales where nothing is quantized, are left out.

    Raises:
        LanguageError: an expression has no value.
    """
    tensor = context.model.tensors.get(beside.role)
    if tensor is None or not frame_holds(entry.when, context.frame):
        return
    ranges = {index: bounds(text) for index, text in tensor.indices.items()}
    scope = context.frame.with_indices(ranges, {})
    family = BufferFamily(
        name=name_of(entry.name, tensor.name, scope),
        indices=tensor.indices,
        at=place(entry.at, context.frame, scope),
        dtype=context.dtype(entry, scope),
        shape=texts([expression(size, scope) for size in beside.shape]),
        strides=_strides(beside, scope),
        kind=entry.kind,
        role=_role(beside, tensor.name, scope, names),
    )
    families = tuple(_shared(family) if beside.shared and family.indices else (family,))
    yield from families
    role = Alias(kind="alias", of=families[0].name)
    for name in further_names(entry.also, family.name, tensor.name, scope):
        yield family.model_copy(update={"name": name, "role": role})


def _strides(beside: Beside, scope: Scope) -> tuple[int | str, ...] | None:
    if beside.strides is None:
        return None
    return texts([expression(stride, scope) for stride in beside.strides])


def _role(beside: Beside, tensor: str, scope: Scope, names: frozenset[str]) -> BufferRole:
    if beside.recipe is not None:
        inputs = [name_of(name, tensor, scope) for name in beside.inputs]
        held = tuple(name for name in inputs if name in names)
        return Derived(kind="derived", recipe=beside.recipe, inputs=held)
    if beside.alias is not None:
        return Alias(kind="alias", of=name_of(beside.alias, tensor, scope))
    if beside.reason is None:
        raise LanguageError("a buffer beside others needs a recipe, a reason or an alias")
    return ConstantBuffer(kind="constant", reason=beside.reason)


def _shared(family: BufferFamily) -> Iterator[BufferFamily]:
    """Make the first buffer the memory of all others."""
    if len(family.indices) != 1:
        raise LanguageError(f"{family.name} is shared, and has not one index")
    ((index, text),) = family.indices.items()
    members = indexset.parse(text)
    first = family.name.replace(f"{{{index}}}", str(members[0]))
    yield family.model_copy(update={"name": first, "indices": {}})
    if len(members) > 1:
        rest = {index: indexset.to_text(members[1:])}
        role = Alias(kind="alias", of=first)
        yield family.model_copy(update={"indices": rest, "role": role})

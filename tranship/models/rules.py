"""From the rules of a layout to buffer families."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tranship.models.boxes import Heap, frame_holds, heap
from tranship.models.declared import BufferEntry, PartEntry, Quantizing
from tranship.models.frame import Frame, place
from tranship.models.language import LanguageError, Scope, evaluate, number
from tranship.models.memory import Slabs, padding, pieces
from tranship.models.model import Model
from tranship.models.quantize import Scheme, scale_boxes, split
from tranship.models.words import further_names, name_of
from tranship.schema.dtypes import DType
from tranship.schema.manifest import Alias, BufferFamily, Encoding, Part, Plain, Scale, Scaled


@dataclass(frozen=True)
class Context:
    """What all rules are applied to. `scheme` is None where nothing is quantized."""

    model: Model
    frame: Frame
    quantizing: Quantizing | None
    scheme: Scheme | None

    def dtype(self, entry: BufferEntry, scope: Scope) -> DType:
        """The dtype of a rule's buffers where they are not quantized.

        Raises:
            LanguageError: the rule states none that there is.
        """
        if entry.dtype is None:
            return self.model.dtype
        value = evaluate(entry.dtype, scope)
        if value not in tuple(DType):
            raise LanguageError(f"{entry.dtype!r} names no dtype")
        return DType(str(value))


def apply(entry: BufferEntry, context: Context) -> Iterator[BufferFamily]:
    """Declare the buffers that a rule stands for.

    Raises:
        LanguageError: an expression has no value, or the rule does not fit the tensors.
        ImpossibleError: the framework could not hold them.
    """
    if not frame_holds(entry.when, context.frame):
        return
    model = context.model
    roles = tuple(model.tensors) if entry.each == "*" else entry.each
    suffixes = ("",) if entry.each == "*" else ("", "_bias")
    groups = [(PartEntry(role=role, rows=entry.rows, columns=entry.columns),) for role in roles]
    groups += [entry.parts] if entry.parts else []
    for parts in groups:
        for suffix in suffixes:
            found = heap(entry, parts, suffix, model, context.frame)
            if found:
                yield from _with_aliases(entry, found, _families(entry, found, context))


def _families(entry: BufferEntry, found: Heap, context: Context) -> Iterator[BufferFamily]:
    scheme = context.scheme
    can = entry.quantize and all(len(held.tensor.shape) == 2 for held in found.held)
    if scheme is None or context.quantizing is None or not can:
        yield _plain(entry, found, context)
        return
    quantized, left = split(found, context.model.ignored)
    for indices in quantized:
        part = replace(found, indices=indices)
        yield from _scaled(entry, part, context, scheme, context.quantizing.suffix)
    for indices in left:
        yield _plain(entry, replace(found, indices=indices), context)


def _with_aliases(
    entry: BufferEntry, found: Heap, families: Iterator[BufferFamily]
) -> Iterator[BufferFamily]:
    """Declare families, and further names of each."""
    tensor = found.held[0].tensor.name
    for family in families:
        yield family
        role = Alias(kind="alias", of=family.name)
        changes = {"role": role, "encoding": Plain(), "pieces": (), "fills": ()}
        for name in further_names(entry.also, family.name, tensor, found.scope):
            yield family.model_copy(update={"name": name, **changes})


def _slabs(entry: BufferEntry, found: Heap) -> Slabs:
    padded = None
    if entry.padding:
        padded = number(entry.padding.rows, found.scope)
    own_dim = entry.stack is not None and not entry.stack.merge
    return Slabs(found.rows, found.slots, own_dim, found.held[0].extent[1:], padded)


def _plain(entry: BufferEntry, found: Heap, context: Context) -> BufferFamily:
    dtype = context.dtype(entry, found.scope)
    return _family(entry, found, context, dtype, Plain())


def _scaled(
    entry: BufferEntry, found: Heap, context: Context, scheme: Scheme, suffix: str
) -> Iterator[BufferFamily]:
    name = _name(entry, found)
    encoding = Scaled(
        kind="scaled",
        block=scheme.block,
        scale=name + suffix,
        scale_values="power_of_two" if scheme.power_of_two else "any",
    )
    codes = _family(entry, found, context, scheme.codes, encoding)
    boxes, slabs = scale_boxes(found, _slabs(entry, found), scheme, ragged=entry.ragged)
    at = _piece_at(entry, found, context)
    yield codes
    yield codes.model_copy(
        update={
            "name": name + suffix,
            "dtype": scheme.scales,
            "shape": slabs.shape(found.scope.ranges),
            "encoding": Scale(kind="scale", of=name),
            "pieces": pieces(found, slabs, boxes, at, Part.SCALE),
            "fills": (),
        }
    )


def _name(entry: BufferEntry, found: Heap) -> str:
    return name_of(entry.name, found.held[0].tensor.name, found.scope)


def _piece_at(entry: BufferEntry, found: Heap, context: Context) -> dict[str, int | str]:
    return place(entry.stack.at, context.frame, found.scope) if entry.stack else {}


def _family(
    entry: BufferEntry, found: Heap, context: Context, dtype: DType, encoding: Encoding
) -> BufferFamily:
    slabs, ranges = _slabs(entry, found), found.scope.ranges
    boxes = [(held.start, held.extent, held.above) for held in found.held]
    pad = entry.padding
    return BufferFamily(
        name=_name(entry, found),
        indices=found.indices,
        at=place(entry.at, context.frame, found.scope),
        dtype=dtype,
        shape=slabs.shape(ranges),
        kind=entry.kind,
        encoding=encoding,
        pieces=pieces(found, slabs, boxes, _piece_at(entry, found, context), Part.VALUE),
        fills=padding(slabs, pad.value, pad.reason, ranges) if pad else (),
    )


def covered(entry: BufferEntry, roles: Sequence[str]) -> frozenset[str]:
    """Which of the roles a rule is about, biases included."""
    if entry.each == "*":
        return frozenset(roles)
    own = {*entry.each, *(part.role for part in entry.parts)}
    return frozenset(role for role in roles if role in own or role.removesuffix("_bias") in own)

"""Record where a model's own `load_weights` puts every element of a checkpoint.

The model and the checkpoint live on the meta device, so nothing is computed. Views share the
storage of what they view; the storage therefore names the tensor, and a view's offset, sizes and
strides say which part of it a copy reads or writes.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tranship.runtime.dtypes import schema_dtype
from tranship.runtime.frameworks.tracing.boxes import Box, View, boxes, intersect, memory_shape
from tranship.runtime.frameworks.tracing.methods import running_method
from tranship.runtime.frameworks.tracing.operations import (
    changed_tensors,
    named_arguments,
    tensors_in,
)
from tranship.runtime.live import LiveTensor, live_tensors
from tranship.schema.dtypes import widens
from tranship.schema.manifest import Kind
from tranship.schema.records import Ints, RoleRecord


class TraceError(RuntimeError):
    """The model loads its weights in a way that copies of boxes cannot express."""


@dataclass(frozen=True, slots=True)
class Write:
    """A box of a checkpoint tensor that a copy puts into a buffer.

    The box's offset and strides count elements of the buffer from the buffer's first element.
    """

    buffer: str
    source: str
    box: Box


@dataclass(frozen=True, slots=True)
class Filling:
    """A region of a buffer that is set to one value; the view starts at the buffer's start."""

    buffer: str
    view: View
    value: float


@dataclass(frozen=True, slots=True)
class Trace:
    """All that one run of `load_weights` did to the buffers, in the order in which it did it.

    `derived` are the roles of buffers that it made of other buffers.
    """

    writes: tuple[Write, ...]
    fillings: tuple[Filling, ...]
    derived: Mapping[str, RoleRecord]


@dataclass(slots=True)
class _Memory:
    """A tensor that spans a storage: its sizes as they lie in memory, and its offset there.

    `value` is what all of it has been filled with meanwhile, if it is no buffer.
    """

    name: str
    dtype: torch.dtype
    shape: Ints
    storage: torch.UntypedStorage
    offset: int = 0
    value: float | None = None


@dataclass(slots=True)
class _Checkpoint(_Memory):
    """A tensor of the checkpoint."""


@dataclass(slots=True)
class _Buffer(_Memory):
    """A parameter, buffer or attribute of the model."""


@dataclass(slots=True)
class _Temporary(_Memory):
    """A tensor made while loading.

    `content` says which checkpoint tensors' elements its boxes hold: a box's offset and strides
    count elements of the checkpoint tensor. `spoiled` names the operation that computed its values.
    """

    spoiled: str = ""
    content: list[tuple[_Memory, Box]] = field(default_factory=list[tuple[_Memory, Box]])

    def put(self, tensor: _Memory, found: tuple[Box, ...]) -> None:
        if any(intersect(old, new) for _, old in self.content for new in found):
            raise TraceError(f"{self.name} gets a part of {tensor.name} on top of another")
        self.content.extend((tensor, box) for box in found)


def trace_load(model: Any, checkpoint: Mapping[str, torch.Tensor]) -> Trace:
    """Run a model's `load_weights` on a checkpoint, both on the meta device, and record it.

    Raises:
        TraceError: as `Tracer`, or if a tensor of the model has other memory afterwards.
    """
    before = live_tensors(model)
    originals = set(aliases(before).values())
    # What has no elements is not written, and may share the storage of anything.
    buffers = {
        name: held.tensor
        for name, held in before.items()
        if name in originals and held.tensor.numel()
    }
    with Tracer(buffers, checkpoint) as tracer:
        model.load_weights(iter(checkpoint.items()))
    if moved := places(before) ^ places(live_tensors(model)):
        names = ", ".join(sorted({name for name, _ in moved}))
        raise TraceError(f"loading gives other memory to {names}")
    return tracer.trace()


def aliases(live: Mapping[str, LiveTensor]) -> dict[str, str]:
    """Map every name to that of the tensor whose memory it is: its own, unless it is an alias.

    Of tensors of which one contains the other the larger one has the memory; of equal ones a
    parameter, or the first. What has no elements is no alias.
    """
    originals: dict[torch.UntypedStorage, list[str]] = defaultdict(list)
    found: dict[str, str] = {}
    for name in sorted(live, key=lambda name: _is_less(live[name])):
        tensor = live[name].tensor
        others = originals[tensor.untyped_storage()] if tensor.numel() else []
        inside = (one for one in others if _within(tensor, live[one].tensor))
        found[name] = next(inside, name)
        if found[name] == name:
            others.append(name)
    return {name: found[name] for name in live}


def _is_less(held: LiveTensor) -> tuple[int, bool]:
    return -held.tensor.nbytes, held.kind is not Kind.PARAMETER


def _within(inner: torch.Tensor, outer: torch.Tensor) -> bool:
    (start, end), (first, last) = map(_extent, (inner, outer))
    return first <= start and end <= last


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the bytes of a storage from the first to the last element of a tensor."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    first = int(tensor.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in steps if size)
    return first * tensor.itemsize, (last + 1) * tensor.itemsize


def places(live: Mapping[str, LiveTensor]) -> set[tuple[str, tuple[object, ...]]]:
    """Return every name with what tells its memory."""
    return {(name, _identity(held.tensor)) for name, held in live.items()}


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return what two tensors share if they are the same elements of the same memory."""
    layout = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
    return tensor.untyped_storage(), tensor.dtype, *layout


class Tracer(TorchDispatchMode):
    """While active, attributes every write into `buffers` to elements of the `checkpoint` tensors.

    Raises:
        TraceError: from the operation at fault, if a buffer gets values that were computed, cast
            on the way so that they change, or copied from an unknown tensor; if a buffer or a
            checkpoint tensor is changed by anything but a copy or a fill; or if a buffer or
            checkpoint tensor shares its storage with another or is not dense.
    """

    def __init__(
        self, buffers: Mapping[str, torch.Tensor], checkpoint: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__()
        self.writes: list[Write] = []
        self.fillings: list[Filling] = []
        self._derived: dict[str, RoleRecord] = {}
        self._memories: dict[torch.UntypedStorage, _Memory] = {}
        for name, tensor in checkpoint.items():
            if not tensor.is_contiguous() or tensor.storage_offset():
                raise TraceError(f"checkpoint tensor {name} is not contiguous")
            self._add(_Checkpoint(name, *_facts(tensor)))
        for name, tensor in buffers.items():
            self._add(_Buffer(name, *_facts(tensor), int(tensor.storage_offset())))

    def trace(self) -> Trace:
        """Return what has been recorded so far."""
        return Trace(tuple(self.writes), tuple(self.fillings), dict(self._derived))

    def _add(self, memory: _Memory) -> None:
        other = self._memories.setdefault(memory.storage, memory)
        if other is not memory:
            raise TraceError(f"{memory.name} shares its storage with {other.name}")

    def _find(self, tensor: torch.Tensor) -> _Memory | None:
        return self._memories.get(tensor.untyped_storage())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        match func._schema.name:
            case "aten::copy_":
                self._copy(args[0], args[1])
            case "aten::fill_":
                self._fill(args[0], args[1])
            case "aten::zero_":
                self._fill(args[0], 0)
            case "aten::clone" | "aten::_to_copy":
                self._create(result)
                self._copy(result, args[0])
            case "aten::cat":
                self._create(result)
                self._concatenate(result, args[0], *args[1:], **kwargs)
            case _:
                self._compute(func, named_arguments(func, args, kwargs), result)
        return result

    def _create(self, tensor: torch.Tensor, spoiled: str = "") -> None:
        self._add(_Temporary("a temporary tensor", *_facts(tensor), spoiled=spoiled))

    def _concatenate(
        self, result: torch.Tensor, parts: Iterable[torch.Tensor], dim: int = 0
    ) -> None:
        position = 0
        for part in parts:
            if part.numel():  # an empty part may have a shape that does not fit
                self._copy(result.narrow(dim, position, part.shape[dim]), part)
                position += part.shape[dim]

    def _fill(self, target: torch.Tensor, value: float | torch.Tensor) -> None:
        memory = self._find(target)
        if memory is None or not target.numel():
            return
        if not isinstance(memory, _Buffer):
            whole = _is_all_of(target, memory) and not isinstance(value, torch.Tensor)
            memory.value = cast("float", value) if whole else None
        if isinstance(memory, _Temporary):
            memory.spoiled = "fill_"
        elif isinstance(memory, _Checkpoint) and memory.value is not None:
            pass  # what it held is not read any more
        elif isinstance(memory, _Checkpoint) or isinstance(value, torch.Tensor):
            raise TraceError(f"{memory.name} is filled with {value}")
        elif target.dtype != memory.dtype:
            raise TraceError(f"{memory.name} is filled with {value} as {target.dtype}")
        else:
            self.fillings.append(Filling(memory.name, _view(target, memory), value))

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        origin, memory = self._find(source), self._find(target)
        if not target.numel() or (origin is None and memory is None):
            return
        if memory is None or isinstance(memory, _Checkpoint):
            raise TraceError(f"{_name(origin)} is copied into {_name(memory)}")
        if isinstance(origin, _Buffer) and isinstance(memory, _Buffer):
            self._derive(memory, target, origin)
            return
        if origin is None or isinstance(origin, _Buffer):
            raise TraceError(f"{_name(memory)} is written from {_name(origin)}")
        if origin.value is not None:
            self._fill(target, origin.value)
            return
        memory.value = None
        _check_dtypes(memory, target, origin, source)
        views = _view(source.expand(target.shape), origin), _view(target, memory)
        for tensor, read, written in _resolve(origin, *views):
            if isinstance(memory, _Temporary):
                memory.put(tensor, boxes(written, memory.shape, read))
            else:
                found = boxes(read, tensor.shape, written)
                self.writes.extend(Write(memory.name, tensor.name, box) for box in found)

    def _require_recipe(self, role: RoleRecord, memory: _Memory, recipe: str | None) -> None:
        """Make sure that one method alone makes a derived buffer."""
        if role.recipe != recipe:
            raise TraceError(f"{memory.name} is made by {role.recipe}, and changed by {recipe}")

    def _derive(self, memory: _Buffer, target: torch.Tensor, origin: _Buffer) -> None:
        recipe = running_method(memory.storage)
        if recipe is None or not _is_all_of(target, memory):
            raise TraceError(f"{memory.name} is written from {origin.name}")
        role = self._derived.get(memory.name, RoleRecord(kind="derived", recipe=recipe))
        self._require_recipe(role, memory, recipe)
        inputs = tuple(sorted({*role.inputs, origin.name}))
        self._derived[memory.name] = replace(role, inputs=inputs)

    def _compute(self, func: Any, arguments: Mapping[str, object], result: object) -> None:
        """Note what an operation spoils: the tensors that it changes, and new ones it returns."""
        operation = func._schema.name
        for tensor in changed_tensors(func, arguments):
            self._spoil(self._find(tensor), operation)
        if any(returned.alias_info is not None for returned in func._schema.returns):
            return
        inputs = filter(None, map(self._find, tensors_in(arguments.values())))
        reason = next((f"{operation} of {memory.name}" for memory in inputs), "")
        for tensor in tensors_in([result]):
            if self._find(tensor) is None:
                self._create(tensor, reason)

    def _spoil(self, memory: _Memory | None, operation: str) -> None:
        if memory is not None and memory.name in self._derived:
            role = self._derived[memory.name]
            self._require_recipe(role, memory, running_method(memory.storage))
        elif isinstance(memory, _Temporary):
            memory.spoiled, memory.value = operation, None
        elif memory:
            raise TraceError(f"{operation} changes {memory.name}")


def _is_all_of(tensor: torch.Tensor, memory: _Memory) -> bool:
    """Whether a view has every element of a memory, once."""
    spread = any(
        size > 1 and not by for size, by in zip(tensor.shape, tensor.stride(), strict=True)
    )
    same = tensor.dtype == memory.dtype and tensor.numel() == math.prod(memory.shape)
    return same and not spread


def _name(memory: _Memory | None) -> str:
    return memory.name if memory else "a tensor that is neither the checkpoint's nor the model's"


def _facts(tensor: torch.Tensor) -> tuple[torch.dtype, Ints, torch.UntypedStorage]:
    try:
        shape = memory_shape(tuple(tensor.shape), tensor.stride())
    except ValueError as error:
        raise TraceError(str(error)) from None
    return tensor.dtype, shape, tensor.untyped_storage()


def _view(tensor: torch.Tensor, memory: _Memory) -> View:
    offset = int(tensor.storage_offset()) - memory.offset
    return View(offset, tuple(tensor.shape), tensor.stride())


def _check_dtypes(
    memory: _Memory, target: torch.Tensor, origin: _Memory, source: torch.Tensor
) -> None:
    """Allow a copy that keeps bytes or casts into a buffer; a cast on the way must be exact."""
    if (target.dtype, source.dtype) != (memory.dtype, origin.dtype):
        same = memory.dtype == origin.dtype and target.dtype == source.dtype
        if not same or source.dtype.itemsize != origin.dtype.itemsize:
            raise TraceError(f"{memory.name} is written from reinterpreted bytes of {origin.name}")
    elif isinstance(memory, _Temporary) and not widens(
        schema_dtype(source.dtype), schema_dtype(target.dtype)
    ):
        raise TraceError(f"{origin.name} is rounded from {source.dtype} to {target.dtype}")


def _resolve(origin: _Memory, read: View, written: View) -> Iterator[tuple[_Memory, View, View]]:
    """Yield the checkpoint tensors behind a view: their elements, and those of `written`."""
    if not isinstance(origin, _Temporary):
        yield origin, read, written
        return
    if origin.spoiled:
        raise TraceError(f"a weight is computed by {origin.spoiled}")
    found = 0
    for box in boxes(read, origin.shape, written):
        for tensor, content in origin.content:
            if common := intersect(content, box):
                found += math.prod(common[0].sizes)
                yield tensor, *common
    if found != math.prod(read.sizes):
        raise TraceError(f"{origin.name} is read where no checkpoint tensor was put")

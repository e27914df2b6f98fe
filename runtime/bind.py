"""Bind the tensors of a live model to the buffers that a manifest declares, once.

Everything that a plan takes for granted about a rank's memory is looked at here, and whatever is
wrong is reported together.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.live import LiveTensor, Modules, Watch, watch
from tranship.runtime.overlap import has_memory, shared, within
from tranship.runtime.packed import PackedScales, receive_packed
from tranship.schema.diagnostics import Diagnostic, DiagnosticError, Location, report_first
from tranship.schema.expand import declared_ranks, expand
from tranship.schema.layouts import PACKED_SCALES, packed_scales
from tranship.schema.manifest import Manifest, Side
from tranship.schema.nearest import nearest
from tranship.schema.records import BufferRecord, Ints

Signature = tuple[int, int, torch.dtype, tuple[int, ...], tuple[int, ...]]
"""What tells a tensor's memory: its address, its storage's, dtype, shape and strides."""


@dataclass(frozen=True, slots=True)
class Bound:
    """One rank's buffers as tensors, by their names in the manifest.

    `device` is where those that take part in the transfer lie. `packed` are those of a receiver
    that hold packed scales.
    """

    side: Side
    rank: int
    device: torch.device
    tensors: Mapping[str, Tensor]
    live: Mapping[str, LiveTensor]
    signatures: Mapping[str, Signature]
    watch: Watch
    packed: Mapping[str, PackedScales]

    def memory(self, name: str) -> Tensor:
        """Return the memory that programs read or write as buffer `name`."""
        return self.packed[name].scales if name in self.packed else self.tensors[name]


def bind(
    live: Mapping[str, LiveTensor],
    manifest: Manifest,
    side: Side,
    rank: int,
    device: torch.device | None = None,
) -> Bound:
    """Bind the tensors of a live model to the buffers that `manifest` declares for `rank`.

    Args:
        live: What `live_tensors` found in the model of this rank.
        manifest: A manifest without errors.
        side: The side that this rank is on.
        rank: The rank within its side.
        device: Where transferred and derived buffers must lie; by default where the first one is.

    Raises:
        DiagnosticError: TS800 to TS809, TS812; everything in which model and manifest differ.
    """
    where = location(side, rank)
    if manifest.side is not side or rank not in declared_ranks(manifest):
        raise DiagnosticError([_other_manifest(manifest, side, rank)])
    records = {record.name: record for record in expand(manifest, [rank]).buffers}
    found = {name: live[name] for name in records if name in live}
    device = device or _device(records.values(), found)
    findings = list(_names(records, live, side, rank))
    for name, tensor in found.items():
        findings += _differences(_held(records[name], records), tensor, device, where)
    findings += _memory(records, found, where)
    if findings:
        raise DiagnosticError(report_first(findings, lambda finding: finding, where.file))
    tensors = {name: tensor.tensor for name, tensor in found.items()}
    signatures = {name: _signature(tensor) for name, tensor in tensors.items()}
    packed = {
        name: receive_packed(name, tensors[name], records[record.encoding.of].shape)
        for name, record in records.items()
        if side is Side.RECEIVER and _is_packed(record)
    }
    return Bound(side, rank, device, tensors, found, signatures, watch(found.values()), packed)


def find_moved(bound: Bound) -> tuple[Diagnostic, ...]:
    """Report the buffers that are no longer the memory that was bound (TS810).

    It takes about a microsecond per buffer, and is meant for every step.
    """
    return () if bound.watch.unchanged() else _find_moved(bound)


def find_replaced(bound: Bound) -> tuple[Diagnostic, ...]:
    """Do the same in a third of the time, but for shapes, strides and dtypes at the same address.

    It is meant for where all ranks wait for it; the rest is to be looked at later.
    """
    return () if bound.watch.in_place() else _find_moved(bound)


def _find_moved(bound: Bound) -> tuple[Diagnostic, ...]:
    seen: Modules = {}
    with torch.no_grad():
        return tuple(
            _moved(name, bound)
            for name, live in bound.live.items()
            if (held := live.read(seen)) is None or _signature(held) != bound.signatures[name]
        )


def location(side: Side, rank: int) -> Location:
    """Return the place of a finding about a rank as a whole."""
    return Location(f"{side} rank {rank}")


def _signature(held: Tensor) -> Signature:
    tensor = held.to_local() if isinstance(held, DTensor) else held
    try:
        storage = tensor.untyped_storage().data_ptr()
    except RuntimeError:  # no memory, as on the meta device
        return 0, 0, tensor.dtype, (), ()
    return tensor.data_ptr(), storage, tensor.dtype, tuple(tensor.shape), tensor.stride()


def _moved(name: str, bound: Bound) -> Diagnostic:
    return Diagnostic(
        code="TS810",
        message=f"{name!r} is not the memory that was bound",
        at=location(bound.side, bound.rank),
        help="write into the tensor in place, or bind anew after whatever replaced it",
    )


def _other_manifest(manifest: Manifest, side: Side, rank: int) -> Diagnostic:
    ranks = manifest.ranks or f"0..{manifest.world_size - 1}"
    return Diagnostic(
        code="TS812",
        message=f"the manifest does not declare the buffers of {side} rank {rank}",
        at=location(side, rank),
        expected=f"{side} rank {rank}",
        found=f"{manifest.side} ranks {ranks}",
    )


def _names(
    records: Mapping[str, BufferRecord], live: Mapping[str, LiveTensor], side: Side, rank: int
) -> Iterator[Diagnostic]:
    """Compare what is declared with what there is, by name."""
    where = location(side, rank)
    missing = [name for name in records if name not in live]
    extra = [name for name in live if name not in records]
    for name in missing:
        message = f"the model has no tensor {name!r}"
        yield Diagnostic("TS800", message, where, help=_hint(name, extra, "the model has"))
    # A sender may hold what no transfer is about. On a receiver, whatever is left out keeps the
    # value that it had, without a word.
    for name in extra if side is Side.RECEIVER else ():
        message = f"{live[name].kind} {name!r} of the model is not declared"
        yield Diagnostic("TS801", message, where, help=_hint(name, missing, "declared are"))


def _hint(name: str, candidates: Sequence[str], what: str) -> str | None:
    close = nearest(name, candidates)
    return f"{what} {', '.join(map(repr, close))}" if close else None


def _device(records: Iterable[BufferRecord], found: Mapping[str, LiveTensor]) -> torch.device:
    for record in records:
        if record.name in found and _takes_part(record):
            return found[record.name].tensor.device
    return torch.device("cpu")


def _takes_part(record: BufferRecord) -> bool:
    return record.role.kind in ("transfer", "derived")


@dataclass(frozen=True, slots=True)
class _Held:
    """What the tensor of a declared buffer must be."""

    record: BufferRecord
    dtype: torch.dtype
    shape: Ints
    strides: Ints


def _held(record: BufferRecord, records: Mapping[str, BufferRecord]) -> _Held:
    first = records.get(record.role.of, record)  # whose second name it may be
    if not _is_packed(first):
        return _Held(record, torch_dtype(record.dtype), record.shape, record.strides)
    return _Held(record, torch.int32, *packed_scales(records[first.encoding.of].shape))


def _is_packed(record: BufferRecord) -> bool:
    return record.layout == PACKED_SCALES and record.role.kind == "transfer"


def _differences(
    held: _Held, live: LiveTensor, device: torch.device, where: Location
) -> Iterator[Diagnostic]:
    """Compare a declared buffer with the tensor of its name."""
    tensor, record, name = live.tensor, held.record, held.record.name
    if not has_memory(tensor):
        what = f"a {type(tensor).__name__}, {tensor.layout}, on device {tensor.device}"
        yield Diagnostic("TS809", f"{name!r} has no memory of its own: it is {what}", where)
        return
    shape, strides = tuple(tensor.shape), tensor.stride()
    if live.kind is not record.kind:
        yield _differs("TS802", name, "kind", record.kind, live.kind, where)
    if tensor.dtype != held.dtype:
        yield _differs("TS803", name, "dtype", held.dtype, tensor.dtype, where)
    if shape != held.shape:
        yield _differs("TS804", name, "shape", held.shape, shape, where)
    elif not _same_strides(shape, held.strides, strides):
        yield _differs("TS805", name, "strides", held.strides, strides, where)
    if _takes_part(record) and tensor.device != device:
        yield _differs("TS806", name, "device", device, tensor.device, where)


def _differs(
    code: str, name: str, what: str, expected: object, found: object, where: Location
) -> Diagnostic:
    message = f"{name!r} has {what} {found}, declared is {expected}"
    return Diagnostic(code, message, where, expected=f"{expected}", found=f"{found}")


def _same_strides(shape: Sequence[int], left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether two strides mean the same addresses; a dim of one element never takes a step."""
    steps = zip(shape, left, right, strict=True)
    return 0 in shape or all(size == 1 or a == b for size, a, b in steps)


def _memory(
    records: Mapping[str, BufferRecord], found: Mapping[str, LiveTensor], where: Location
) -> Iterator[Diagnostic]:
    """Compare who shares memory with whom with the aliases that are declared."""
    tensors = {name: live.tensor for name, live in found.items() if has_memory(live.tensor)}
    for name, record in records.items():
        of = record.role.of
        if name in tensors and of in tensors and not within(tensors[name], tensors[of]):
            message = f"{name!r} is declared an alias, but does not lie in the memory of {of!r}"
            yield Diagnostic("TS808", message, where)
    owner = {name: _owner(name, records) for name in tensors}
    reported: set[str] = set()
    for first, second in shared(tensors):
        if owner[first] != owner[second] and second not in reported:
            reported.add(second)
            message = f"{second!r} shares memory with {first!r}, and neither is declared an alias"
            advice = "declare the one an alias of the other, or give it memory of its own"
            yield Diagnostic("TS807", message, where, help=advice)


def _owner(name: str, records: Mapping[str, BufferRecord]) -> str:
    """Follow aliases to the buffer whose memory they are."""
    passed = {name}
    while (of := records[name].role.of) in records and of not in passed:
        passed.add(of)
        name = of
    return name

"""Declare what one rank of a model under PyTorch's `fully_shard` (FSDP2) holds.

FSDP2 keeps every parameter as a DTensor. Its local part is a view of the front of a buffer that is
padded to equal size on all ranks (torch 2.13, `_fsdp_param.py`): rows of padding lie behind the
view, not in it, and a rank past the end of a small parameter holds a view of no elements.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from tranship.runtime.bind import location
from tranship.runtime.dtypes import TORCH_DTYPES, schema_dtype
from tranship.runtime.frameworks.held import RECOMPUTED, Held, named_tensors
from tranship.runtime.live import local_tensor
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.manifest import Axis, Framework, Part, Side
from tranship.schema.nearest import nearest
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    Ints,
    PieceRecord,
    RoleRecord,
    TensorRecord,
    contiguous_strides,
)


def fsdp_declaration(
    model: nn.Module,
    *,
    rank: int,
    world_size: int,
    axes: Sequence[Axis] = (),
    names: Mapping[str, str] | None = None,
) -> Declaration:
    """Declare the parameters and buffers of a model as this rank holds them.

    Parameters and persistent buffers are transferred: a DTensor's box is what its placements give
    this rank, any other tensor is held whole by every rank. Buffers outside of the module's state
    are constant. A tensor with several names has memory under the first of them only: the others
    are aliases, and the logical tensors are tied. Plain attributes are not declared.

    Args:
        model: The model, its parameters sharded (not gathered for a forward pass).
        rank: This rank among the senders.
        world_size: Number of sender ranks.
        axes: Axes of the mesh, as `mesh_axes` makes them, so that the ranks' declarations fold
            into expressions over these.
        names: Checkpoint names of tensors that have another name in the model.

    Raises:
        DiagnosticError: TS820 to TS823.
    """
    names = names or {}
    held = list(named_tensors(model))
    findings = list(_wrong_names(names, [item.name for item in held], rank))
    buffers: list[BufferRecord] = []
    for item in held:
        try:
            buffers.append(_buffer(item, rank, names))
        except DiagnosticError as error:
            findings += error.diagnostics
    if findings:
        raise DiagnosticError(findings)
    return Declaration(
        side=Side.SENDER,
        world_size=world_size,
        ranks=(rank,),
        axes=tuple(axes),
        tensors=tuple(sorted({_tensor(item, names) for item in held if item.persistent})),
        buffers=tuple(sorted(buffers)),
        framework=Framework(name="fsdp2", version=str(torch.__version__)),
    )


def mesh_axes(mesh: DeviceMesh) -> tuple[Axis, ...]:
    """Describe a device mesh with named dims as axes of its ranks.

    Raises:
        ValueError: a dim has no name that an axis may have, or ranks do not count up in steps.
    """
    ranks = mesh.mesh.cpu()
    names = mesh.mesh_dim_names or ("",) * ranks.ndim
    axes = tuple(_axis(name, ranks, dim) for dim, name in enumerate(names))
    for dim, axis in enumerate(axes):
        expected = torch.arange(axis.size).reshape(
            [-1 if k == dim else 1 for k in range(ranks.ndim)]
        )
        if not torch.equal(ranks // axis.stride % axis.size, expected.expand(ranks.shape)):
            raise ValueError(f"ranks {ranks.tolist()} have no coordinate on axis {axis.name!r}")
    return axes


def _axis(name: str, ranks: Tensor, dim: int) -> Axis:
    size = ranks.shape[dim]
    row = ranks.movedim(dim, 0).reshape(size, -1)[:, 0]
    return Axis(name=name, size=size, stride=int(row[1] - row[0]) if size > 1 else 1)


def _wrong_names(names: Mapping[str, str], known: Sequence[str], rank: int) -> Iterator[Diagnostic]:
    for name in names:
        if name not in known:
            close = nearest(name, known)
            advice = f"did you mean {close[0]!r}?" if close else None
            message = f"the model has no parameter or buffer {name!r}"
            yield Diagnostic("TS820", message, location(Side.SENDER, rank), help=advice)


def _tensor(item: Held, names: Mapping[str, str]) -> TensorRecord:
    name, original = (names.get(key, key) for key in (item.name, item.original))
    return TensorRecord(name, tuple(item.tensor.shape), "" if name == original else original)


def _buffer(item: Held, rank: int, names: Mapping[str, str]) -> BufferRecord:
    local = local_tensor(item.tensor)
    if local.dtype not in TORCH_DTYPES.values():
        raise _refusal("TS823", f"{item.name!r} is {local.dtype}, which no buffer may hold", rank)
    shape = tuple(local.shape)
    strides = contiguous_strides(shape) if local.is_contiguous() else local.stride()
    role = RoleRecord()
    if item.name != item.original:
        role = RoleRecord("alias", of=item.original)
    elif not item.persistent:
        role = RoleRecord("constant", reason=RECOMPUTED)
    pieces = _pieces(item, strides, rank, names) if role.kind == "transfer" else ()
    dtype = schema_dtype(local.dtype)
    return BufferRecord(rank, item.name, dtype, shape, strides, item.kind, role, pieces=pieces)


def _pieces(
    item: Held, strides: Ints, rank: int, names: Mapping[str, str]
) -> tuple[PieceRecord, ...]:
    tensor, shape = item.tensor, tuple(item.tensor.shape)
    start, extent = (0,) * len(shape), shape
    if isinstance(tensor, DTensor):
        ranges = [_range(tensor, dim, item.name, rank) for dim in range(len(shape))]
        start = tuple(first for first, _ in ranges)
        extent = tuple(end - first for first, end in ranges)
    local = tuple(local_tensor(tensor).shape)
    if local != extent:
        message = f"{item.name!r} has shape {local} on this rank, its placements give {extent}"
        raise _refusal("TS822", message, rank)
    if 0 in extent:
        return ()
    name, ones, zeros = names.get(item.name, item.name), (1,) * len(shape), (0,) * len(shape)
    return (PieceRecord(name, Part.VALUE, start, extent, ones, 0, strides, zeros),)


def _range(tensor: DTensor, dim: int, name: str, rank: int) -> tuple[int, int]:
    """Return the first element of dim `dim` on this rank, and the one after the last.

    Mesh axes split a dim one after another into chunks of equal size, the last ones smaller or
    empty, as `torch.chunk` does. Their order is not always that of the mesh: an axis with a
    `split_factor` comes after axes to its right that make so many chunks together. (torch 2.13's
    own `compute_local_shape_and_global_offset` is wrong for some sizes that do not divide evenly.)
    """
    mesh, coordinate = tensor.device_mesh, tensor.device_mesh.get_coordinate()
    if coordinate is None:
        raise _refusal("TS821", f"{name!r} lies on a mesh without this rank", rank)
    order: list[tuple[int, int]] = []
    for axis, placement in reversed(list(enumerate(tensor.placements))):
        if not placement.is_replicate() and not hasattr(placement, "dim"):
            raise _refusal("TS821", f"{name!r} has placement {placement}", rank)
        if getattr(placement, "dim", None) == dim:
            factor = getattr(placement, "split_factor", 1)
            chunks = [prod(count for count, _ in order[:end]) for end in range(len(order) + 1)]
            if factor not in chunks:
                raise _refusal("TS821", f"{name!r} has placements {tensor.placements}", rank)
            order.insert(chunks.index(factor), (mesh.size(axis), coordinate[axis]))
    first, end = 0, int(tensor.shape[dim])
    for count, number in order:
        chunk = -(-(end - first) // count)
        first, end = min(first + number * chunk, end), min(first + (number + 1) * chunk, end)
    return first, end


def _refusal(code: str, message: str, rank: int) -> DiagnosticError:
    return DiagnosticError([Diagnostic(code, message, location(Side.SENDER, rank))])

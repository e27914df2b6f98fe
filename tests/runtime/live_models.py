"""Live models made to the measure of a manifest: a module tree with a tensor for every buffer."""

import torch
from torch import Tensor, nn

from tranship.runtime.dtypes import torch_dtype
from tranship.schema.expand import expand
from tranship.schema.manifest import Kind, Manifest
from tranship.schema.records import BufferRecord

SENTINEL = 0x5A


def model_of(manifest: Manifest, rank: int, device: str = "cpu") -> nn.Module:
    """Build the modules of one rank, with sentinel bytes in every buffer."""
    root = nn.Module()
    records = {record.name: record for record in expand(manifest, [rank]).buffers}
    tensors = {
        name: blank(record, device) for name, record in records.items() if not record.role.of
    }
    for name, record in records.items():
        tensor = tensors[record.role.of or name]
        # An alias may see the same memory in another way.
        place(root, name, record.kind, tensor.as_strided(record.shape, record.strides))
    return root


def blank(record: BufferRecord, device: str = "cpu") -> Tensor:
    kind = torch_dtype(record.dtype)
    tensor = torch.empty_strided(record.shape, record.strides, dtype=kind, device=device)
    whole = torch.empty(0, dtype=torch.uint8, device=device).set_(tensor.untyped_storage())
    whole.fill_(SENTINEL)
    return tensor


def place(root: nn.Module, name: str, kind: Kind, tensor: Tensor) -> None:
    """Put a tensor where its name says, replacing what is there."""
    *path, key = name.split(".")
    for part in path:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if hasattr(root, key):
        delattr(root, key)
    match kind:
        case Kind.PARAMETER:
            root.register_parameter(key, nn.Parameter(tensor, requires_grad=False))
        case Kind.BUFFER:
            root.register_buffer(key, tensor)
        case Kind.ATTRIBUTE:
            setattr(root, key, tensor)

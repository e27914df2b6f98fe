"""Real transfers as plans, and the memory of their ranks: what the measurements on GPUs move.

Manifests come from the config.json of the examples, cut to a number of layers and experts and then
to some families of tensors. Senders hold BF16, as FSDP (dense models) or as Megatron with experts
distributed over all ranks; receivers are one SGLang engine, in FP8 blocks of 128 or in BF16.
"""

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tranship.compiler.pipeline import compile_transfer
from tranship.models.produce import Request, produce
from tranship.runtime.dtypes import torch_dtype
from tranship.schema.dtypes import ITEM_SIZE
from tranship.schema.expand import expand
from tranship.schema.manifest import Manifest, Part, Piece, Quantization
from tranship.schema.plan import TransferPlan
from tranship.schema.records import BufferRecord
from tranship.schema.transfer import Options

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

QUANTIZATIONS = {"fp8": "fp8-block128", "bf16": "bf16"}
"""What a precision is called by `tranship manifest`."""

SCALE_SUFFIX = "_scale_inv"
"""What a checkpoint appends to the name of a weight to name its scales."""

SPREAD = 0.02
"""Standard deviation of random weights."""
RANDOM_ELEMENTS = 67_108_859
"""Elements of the random block that weights repeat: a prime, so that tiles of a weight differ."""
SEED = 20
POISON = 0xA5


@dataclass(frozen=True)
class Case:
    """A transfer: what both sides declare, and the plan between them."""

    name: str
    sender: Manifest
    receiver: Manifest
    plan: TransferPlan


@dataclass(frozen=True)
class Model:
    """What a case is made of: an example's model, how it is held, and which tensors are wanted.

    `config` are the fields of config.json that change with the numbers of layers and experts.
    """

    example: str
    architecture: str
    sender: Literal["fsdp", "megatron"]
    wanted: Callable[[str], bool]
    layers: int
    experts: int
    config: Callable[[int, int], dict[str, int]]


def is_any(name: str) -> bool:
    """Want every tensor."""
    return bool(name)


def is_linear(name: str) -> bool:
    """Want the weights of linear layers, but not embedding and head."""
    return name.endswith("_proj.weight")


def is_expert(name: str) -> bool:
    """Want the weights of routed experts."""
    return ".experts." in name


def dense(layers: int, _experts: int) -> dict[str, int]:
    """Cut Qwen3."""
    return {"num_hidden_layers": layers}


def qwen3_moe(layers: int, experts: int) -> dict[str, int]:
    """Cut Qwen3-MoE."""
    return {"num_hidden_layers": layers, "num_experts": experts}


def kimi(layers: int, experts: int) -> dict[str, int]:
    """Cut Kimi-K2, whose first layer has no experts."""
    return {"num_hidden_layers": layers + 1, "n_routed_experts": experts}


MODELS = {
    "qwen3-8b": Model("qwen3-8b", "qwen3", "fsdp", is_any, 36, 0, dense),
    "qwen3-8b-linears": Model("qwen3-8b", "qwen3", "fsdp", is_linear, 36, 0, dense),
    "qwen3-30b-experts": Model(
        "qwen3-30b-a3b", "qwen3_moe", "megatron", is_expert, 24, 128, qwen3_moe
    ),
    "kimi-k2-experts": Model("kimi-k2", "deepseek_v3", "megatron", is_expert, 1, 96, kimi),
}
"""The cases by name."""


def case(
    name: str,
    *,
    precision: str = "fp8",
    staging_bytes: int = 1 << 30,
    sender_ranks: int = 1,
    receiver_ranks: int = 1,
    layers: int | None = None,
    experts: int | None = None,
) -> Case:
    """Declare both sides and compile the plan.

    Args:
        name: A key of `MODELS`.
        precision: What the receiver holds its linear weights in: "fp8" (128 x 128 blocks with
            float32 scales) or "bf16".
        staging_bytes: As in `Options`; a round stages half of it.
        sender_ranks: FSDP ranks, or Megatron ranks over which experts are distributed.
        receiver_ranks: Tensor parallel size, and expert parallel size, of the engine.
        layers: Layers with wanted tensors, if not the case's own number.
        experts: Experts of a layer, if not the case's own number.

    Raises:
        KeyError: there is no such case or precision.
        DiagnosticError: the model cannot be held like this.
    """
    model = MODELS[name]
    sizes = model.config(layers or model.layers, experts or model.experts)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        whole = json.loads((EXAMPLES / model.example / "config.json").read_text())
        config.write_text(json.dumps(whole | sizes))
        sender = produce(_sender(model, str(config), sender_ranks))
        receiver = produce(_receiver(model, str(config), receiver_ranks, precision))
    sender, receiver = cut(sender, model.wanted), cut(receiver, model.wanted)
    options = Options(staging_bytes=staging_bytes)
    return Case(name, sender, receiver, compile_transfer(sender, receiver, options=options))


def _sender(model: Model, config: str, ranks: int) -> Request:
    if model.sender == "fsdp":
        options = {"shard_size": str(ranks)}
    else:
        options = {
            "world_size": str(ranks),
            "expert_model_parallel_size": str(ranks),
            "expert_tensor_parallel_size": "1",
        }
    return Request(model.architecture, config, model.sender, options)


def _receiver(model: Model, config: str, ranks: int, precision: str) -> Request:
    options = {"tp_size": str(ranks)}
    if model.experts:
        options["ep_size"] = str(ranks)
    return Request(model.architecture, config, "sglang", options, QUANTIZATIONS[precision])


def cut(manifest: Manifest, wanted: Callable[[str], bool]) -> Manifest:
    """Keep the tensor families with wanted names, and the buffers that hold only those.

    Scales hold the tensor whose scales they are, so they stay with their weights. Where a family
    of tensors goes, so do the buffers without any tensor: constants, aliases and derived ones.

    Raises:
        ValueError: a buffer holds tensors of which one is wanted and another is not.
    """
    tensors = tuple(family for family in manifest.tensors if wanted(family.name))
    if len(tensors) == len(manifest.tensors):
        return manifest
    buffers = tuple(b for b in manifest.buffers if _holds(b.name, b.pieces, wanted))
    names = {family.name for family in tensors}
    changes: dict[str, object] = {"tensors": tensors, "buffers": buffers}
    if manifest.quantization:
        kept = [m for m in manifest.quantization.unquantized if f"{m.name}.weight" in names]
        method = manifest.quantization.method
        changes["quantization"] = Quantization(method=method, unquantized=tuple(kept))
    return manifest.model_copy(update=changes)


def _holds(buffer: str, pieces: tuple[Piece, ...], wanted: Callable[[str], bool]) -> bool:
    answers = {wanted(piece.tensor) for piece in pieces}
    if len(answers) == 2:
        raise ValueError(f"{buffer} holds tensors of which only some are wanted")
    return answers == {True}


# --- Memory ---------------------------------------------------------------------------------------


def allocate(
    manifest: Manifest, rank: int, device: torch.device | str, *, fill: Literal["random", "poison"]
) -> dict[str, Tensor]:
    """Make the buffers of a rank, by name: each a tensor of its own from the default allocator.

    Args:
        manifest: Either side.
        rank: Which rank of it.
        device: Where.
        fill: "random" puts `logical_values` where the manifest declares tensors, and zeros
            elsewhere; "poison" puts 0xa5 into every byte.

    Returns:
        Tensors of the dtypes, shapes and strides declared; an alias is its target's tensor.

    Raises:
        ValueError: quantized buffers cannot be filled with random values.
    """
    device = torch.device(device)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for record in expand(manifest, [rank]).buffers:
        if record.role.kind == "alias":
            aliases[record.name] = record.role.of
            continue
        tensor = torch.empty_strided(
            record.shape, record.strides, dtype=torch_dtype(record.dtype), device=device
        )
        tensors[record.name] = tensor
        if fill == "poison":
            storage_bytes(tensor).fill_(POISON)
        else:
            storage_bytes(tensor).zero_()
    if fill == "random":
        _randomize(manifest, rank, tensors)
    return tensors | {name: tensors[of] for name, of in aliases.items()}


def storage_bytes(tensor: Tensor) -> Tensor:
    """The whole memory behind a tensor, as uint8 `[bytes]`."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _randomize(manifest: Manifest, rank: int, tensors: dict[str, Tensor]) -> None:
    """Write every piece of a rank."""
    declaration = expand(manifest, [rank])
    shapes = {record.name: record.shape for record in declaration.tensors}
    for record in declaration.buffers:
        if record.pieces and record.encoding.kind != "plain":
            raise ValueError(f"{record.name} is quantized: random values are for senders")
        for name, box, place in _places(record, tensors.get(record.name)):
            place.copy_(logical_values(name, shapes[name], place.device)[box])


def _places(
    record: BufferRecord, buffer: Tensor | None
) -> Iterator[tuple[str, tuple[slice, ...], Tensor]]:
    """Yield tensor, box and the buffer's elements, of every piece."""
    for piece in record.pieces:
        assert buffer is not None, "only buffers of their own have pieces"
        box = tuple(
            slice(start, start + step * extent, step)
            for start, extent, step in zip(piece.start, piece.extent, piece.step, strict=True)
        )
        yield piece.tensor, box, buffer.as_strided(piece.extent, piece.strides, piece.offset)


def logical_values(name: str, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Random values of a logical tensor, the same in every process with such a device.

    Returns:
        BF16 of `shape`, normal with standard deviation 0.02: a run of elements of one random
        block, from a position that follows from the name, over and over.
    """
    block = _random_block(torch.device(device))
    count = prod(shape)
    start = zlib.crc32(name.encode()) % RANDOM_ELEMENTS
    if start + count <= RANDOM_ELEMENTS:
        return block[start : start + count].view(shape)
    whole, rest = divmod(start + count, RANDOM_ELEMENTS)
    parts = [block[start:], *[block] * (whole - 1), block[:rest]]
    return torch.cat(parts).view(shape)


@lru_cache(maxsize=2)
def _random_block(device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(SEED)
    block = torch.empty(RANDOM_ELEMENTS, dtype=torch.bfloat16, device=device)
    return block.normal_(0.0, SPREAD, generator=generator)


def forget_random() -> None:
    """Free the random block."""
    _random_block.cache_clear()


def held_bytes(manifest: Manifest, rank: int) -> int:
    """Return the bytes of all tensors, or parts of them, that a rank holds, scales included."""
    return sum(
        prod(piece.extent) * ITEM_SIZE[record.dtype]
        for record in expand(manifest, [rank]).buffers
        for piece in record.pieces
    )


# --- A rank as a checkpoint's names see it --------------------------------------------------------


def checkpoint_views(
    manifest: Manifest, rank: int, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The checkpoint's tensors where they lie in a rank's buffers.

    A sender's are what it passes to a loader by name; a receiver's are where a loader copies them
    to. Scales have the name of their weight with "_scale_inv".

    Args:
        manifest: A side whose `rank` holds every tensor once and whole.
        rank: Which rank of it.
        tensors: Its buffers, as `allocate` makes them.

    Returns:
        Views by name, in the order of names; each weight is followed by its scales.

    Raises:
        ValueError: the rank holds a tensor in more than one piece.
    """
    views: dict[str, Tensor] = {}
    for record in expand(manifest, [rank]).buffers:
        pieces = zip(record.pieces, _places(record, tensors.get(record.name)), strict=True)
        for piece, (tensor, _, place) in pieces:
            name = tensor + SCALE_SUFFIX if piece.part is Part.SCALE else tensor
            if name in views:
                raise ValueError(f"{name} lies in several pieces")
            views[name] = place
    return dict(sorted(views.items()))

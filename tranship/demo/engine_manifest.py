"""The manifest of one live engine rank: what lies where in its fused buffers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from tranship.demo.config import BLOCK, TP_SIZE, ModelConfig
from tranship.demo.engine_model import EngineModel
from tranship.runtime.dtypes import schema_dtype
from tranship.schema.manifest import Axis, Framework, Kind, Part, Side
from tranship.schema.records import (
    BufferRecord,
    Declaration,
    EncodingRecord,
    FillRecord,
    Ints,
    PieceRecord,
    RoleRecord,
    TensorRecord,
)

SCALE = "_scale_inv"
AXES = (Axis(name="tp", size=TP_SIZE, stride=1),)


@dataclass(frozen=True)
class Held:
    """A box of a checkpoint tensor and the first row of the buffer that holds it.

    Rows of a stacked buffer [expert, row, column] are counted through all experts.
    """

    tensor: str
    start: Ints
    extent: Ints
    row: int = 0


def engine_declaration(model: EngineModel) -> Declaration:
    """Declare every parameter and buffer of one engine rank."""
    buffers = [
        _buffer(model, name, tensor, Kind.PARAMETER) for name, tensor in model.named_parameters()
    ]
    buffers += [_buffer(model, name, tensor, Kind.BUFFER) for name, tensor in model.named_buffers()]
    return Declaration(
        side=Side.RECEIVER,
        world_size=TP_SIZE,
        ranks=(model.rank,),
        axes=AXES,
        tensors=tuple(sorted(checkpoint_tensors(model.config))),
        buffers=tuple(sorted(buffers)),
        framework=Framework(name="tranship demo engine", version="SGLang 0.5.23 layout"),
    )


def checkpoint_tensors(config: ModelConfig) -> Iterator[TensorRecord]:
    """Every tensor of the checkpoint, with its global shape."""
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        yield TensorRecord(name, (config.vocab_size, hidden))
    yield TensorRecord("model.norm.weight", (hidden,))
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        yield TensorRecord(f"{prefix}.self_attn.q_proj.weight", (config.query_size, hidden))
        for part in ("k_proj", "v_proj"):
            yield TensorRecord(f"{prefix}.self_attn.{part}.weight", (config.key_value_size, hidden))
        yield TensorRecord(f"{prefix}.self_attn.o_proj.weight", (hidden, config.query_size))
        for part in ("q_norm", "k_norm"):
            yield TensorRecord(f"{prefix}.self_attn.{part}.weight", (config.head_dim,))
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield TensorRecord(f"{prefix}.{part}.weight", (hidden,))
        yield TensorRecord(f"{prefix}.mlp.gate.weight", (config.num_experts, hidden))
        for expert in range(config.num_experts):
            for part in ("gate_proj", "up_proj"):
                yield TensorRecord(f"{prefix}.mlp.experts.{expert}.{part}.weight", (inner, hidden))
            yield TensorRecord(f"{prefix}.mlp.experts.{expert}.down_proj.weight", (hidden, inner))


def held_by(config: ModelConfig, rank: int, name: str) -> Iterator[Held]:
    """Which boxes the weight buffer `name` holds on this rank, in the order of its rows."""
    module, _, leaf = name.removesuffix(".weight").rpartition(".")
    hidden = config.hidden_size
    inner = config.moe_intermediate_size // TP_SIZE
    match leaf:
        case "qkv_proj":
            query, key = config.query_size // TP_SIZE, config.key_value_size // TP_SIZE
            for part, rows, above in (("q", query, 0), ("k", key, query), ("v", key, query + key)):
                yield Held(f"{module}.{part}_proj.weight", (rank * rows, 0), (rows, hidden), above)
        case "o_proj":
            columns = config.query_size // TP_SIZE
            yield Held(f"{module}.o_proj.weight", (0, rank * columns), (hidden, columns))
        case "w13_weight":
            for expert in range(config.num_experts):
                for place, part in enumerate(("gate_proj", "up_proj")):
                    tensor = f"{module}.{expert}.{part}.weight"
                    row = (2 * expert + place) * inner
                    yield Held(tensor, (rank * inner, 0), (inner, hidden), row)
        case "w2_weight":
            for expert in range(config.num_experts):
                tensor = f"{module}.{expert}.down_proj.weight"
                yield Held(tensor, (0, rank * inner), (hidden, inner), expert * hidden)
        case "embed_tokens" | "lm_head":
            rows = config.padded_vocab_size // TP_SIZE
            kept = min(rows, config.vocab_size - rank * rows)
            yield Held(name, (rank * rows, 0), (kept, hidden))
        case "gate":
            yield Held(name, (0, 0), (config.num_experts, hidden))
        case "q_norm" | "k_norm":
            yield Held(name, (0,), (config.head_dim,))
        case _:
            yield Held(name, (0,), (hidden,))


def _buffer(model: EngineModel, name: str, tensor: Tensor, kind: Kind) -> BufferRecord:
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    record = BufferRecord(model.rank, name, schema_dtype(tensor.dtype), shape, strides, kind)
    if kind is Kind.BUFFER:
        return replace(record, role=RoleRecord("constant", reason="computed from the config"))
    held = tuple(held_by(model.config, model.rank, name.removesuffix(SCALE)))
    if name.endswith(SCALE):
        of = EncodingRecord("scale", of=name.removesuffix(SCALE))
        pieces = tuple(sorted(_scale_piece(part, strides) for part in held))
        return replace(record, encoding=of, pieces=pieces)
    pieces = tuple(sorted(_piece(part, Part.VALUE, strides) for part in held))
    if record.dtype.value == "f8e4m3fn":
        scaled = EncodingRecord("scaled", (BLOCK, BLOCK), name + SCALE, "any")
        return replace(record, encoding=scaled, pieces=pieces)
    return replace(record, pieces=pieces, fills=_padding(shape, strides, held))


def _piece(part: Held, kind: Part, strides: Ints) -> PieceRecord:
    dims = len(part.start)
    own = strides[-dims:]
    ones, zeros, offset = (1,) * dims, (0,) * dims, part.row * own[0]
    return PieceRecord(part.tensor, kind, part.start, part.extent, ones, offset, own, zeros)


def _scale_piece(part: Held, strides: Ints) -> PieceRecord:
    """The same box in blocks: every start and row here is a multiple of the block."""
    start = tuple(entry // BLOCK for entry in part.start)
    extent = tuple(-(-entry // BLOCK) for entry in part.extent)
    return _piece(Held(part.tensor, start, extent, part.row // BLOCK), Part.SCALE, strides)


def _padding(shape: Ints, strides: Ints, held: tuple[Held, ...]) -> tuple[FillRecord, ...]:
    """The rows of a padded vocabulary that belong to no token."""
    rows = sum(part.extent[0] for part in held)
    if rows == shape[0]:
        return ()
    sizes = (shape[0] - rows, *shape[1:])
    return (FillRecord(rows * strides[0], sizes, strides, value=0),)

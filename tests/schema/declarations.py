"""Declarations as frameworks hold them, record by record, for the tests of fold, expand, merge."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from tranship.schema.dtypes import DType
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
    contiguous_strides,
)

Box = tuple[str, Ints, Ints, int]
"""A tensor, start and extent of a box in it, and the offset of the box in a buffer."""


def declare(
    side: Side,
    axes: Sequence[Axis],
    world_size: int,
    tensors: dict[str, Ints],
    buffers: list[BufferRecord],
    framework: str,
) -> Declaration:
    return Declaration(
        side=side,
        world_size=world_size,
        ranks=tuple(range(world_size)),
        axes=tuple(axes),
        tensors=tuple(sorted(TensorRecord(name, shape) for name, shape in tensors.items())),
        buffers=tuple(sorted(buffers)),
        framework=Framework(name=framework),
    )


def piece(
    tensor: str,
    start: Ints,
    extent: Ints,
    offset: int,
    strides: Ints,
    part: Part = Part.VALUE,
    origin: Ints | None = None,
) -> PieceRecord:
    ones, zeros = (1,) * len(start), (0,) * len(start)
    return PieceRecord(tensor, part, start, extent, ones, offset, strides, origin or zeros)


def buffer(
    rank: int,
    name: str,
    shape: Ints,
    boxes: Sequence[Box],
    dtype: DType = DType.BF16,
    encoding: EncodingRecord = EncodingRecord(),  # noqa: B008 - frozen
) -> BufferRecord:
    """A contiguous buffer that holds boxes; empty ones are left out."""
    strides = contiguous_strides(shape)
    part = Part.SCALE if encoding.kind == "scale" else Part.VALUE
    pieces = [
        piece(tensor, start, extent, offset, strides[len(shape) - len(start) :], part)
        for tensor, start, extent, offset in boxes
        if all(extent)
    ]
    return BufferRecord(
        rank, name, dtype, shape, strides, encoding=encoding, pieces=tuple(sorted(pieces))
    )


# SGLang: fused projections, experts stacked, weights in blocks of 128 x 128 with scales.

LAYERS, EXPERTS, HIDDEN, HEAD, HEADS, GROUPS, INNER, VOCAB = 4, 8, 256, 128, 4, 2, 256, 1000


def moe_tensors() -> dict[str, Ints]:
    """The tensors of a small Qwen3-MoE."""
    tensors: dict[str, Ints] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (GROUPS * HEAD, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (GROUPS * HEAD, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
            f"{prefix}.mlp.gate.weight": (EXPERTS, HIDDEN),
        }
        for expert in range(EXPERTS):
            tensors |= {
                f"{prefix}.mlp.experts.{expert}.gate_proj.weight": (INNER, HIDDEN),
                f"{prefix}.mlp.experts.{expert}.up_proj.weight": (INNER, HIDDEN),
                f"{prefix}.mlp.experts.{expert}.down_proj.weight": (HIDDEN, INNER),
            }
    return tensors


def sglang_moe() -> Declaration:
    """Qwen3-MoE on two ranks: attention at tp 2, experts at ep 2 over the same ranks."""
    axes = [Axis(name="tp", size=2, stride=1), Axis(name="ep", size=2, stride=1)]
    buffers = [record for rank in (0, 1) for record in _sglang_rank(rank)]
    return declare(Side.RECEIVER, axes, 2, moe_tensors(), buffers, "sglang")


def _sglang_rank(rank: int) -> Iterator[BufferRecord]:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        yield _padded_vocabulary(rank, name)
    yield buffer(rank, "model.norm.weight", (HIDDEN,), [("model.norm.weight", (0,), (HIDDEN,), 0)])
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            name = f"{prefix}.{norm}.weight"
            yield buffer(rank, name, (HIDDEN,), [(name, (0,), (HIDDEN,), 0)])
        router = f"{prefix}.mlp.gate.weight"
        yield buffer(rank, router, (EXPERTS, HIDDEN), [(router, (0, 0), (EXPERTS, HIDDEN), 0)])
        reason = RoleRecord("constant", reason="computed from the configuration when built")
        cache = f"{prefix}.self_attn.rotary_emb.cos_sin_cache"
        record = buffer(rank, cache, (512, HEAD), [], DType.F32)
        yield replace(record, kind=Kind.BUFFER, role=reason)
        yield from _sglang_attention(rank, prefix)
        yield from _sglang_experts(rank, prefix)


def _padded_vocabulary(rank: int, name: str) -> BufferRecord:
    rows = min(512, VOCAB - 512 * rank)
    record = buffer(rank, name, (512, HIDDEN), [(name, (512 * rank, 0), (rows, HIDDEN), 0)])
    if rows == 512:
        return record
    padding = FillRecord(rows * HIDDEN, (512 - rows, HIDDEN), (HIDDEN, 1), 0)
    return replace(record, fills=(padding,))


def _scaled(
    rank: int, name: str, shape: Ints, boxes: Sequence[Box], scale_boxes: Sequence[Box]
) -> Iterator[BufferRecord]:
    """A weight in blocks of 128 x 128 and the buffer of its scales."""
    scale = f"{name}_scale_inv"
    coded = EncodingRecord("scaled", (128, 128), scale, "any")
    yield buffer(rank, name, shape, boxes, DType.F8E4M3FN, coded)
    blocks = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    of = EncodingRecord("scale", of=name)
    yield buffer(rank, scale, blocks, scale_boxes, DType.F32, of)


def _stacked(rows: Sequence[tuple[str, int, int]], columns: int, first: int = 0) -> list[Box]:
    """Boxes one upon the other: the tensor, first row and number of rows of each."""
    boxes: list[Box] = []
    for tensor, start, count in rows:
        boxes.append((tensor, (start, 0), (count, columns), first * columns))
        first += count
    return boxes


def _sglang_attention(rank: int, prefix: str) -> Iterator[BufferRecord]:
    sizes = [("q_proj", HEADS // 2), ("k_proj", GROUPS // 2), ("v_proj", GROUPS // 2)]
    rows = [
        (f"{prefix}.self_attn.{name}.weight", rank * count * HEAD, count * HEAD)
        for name, count in sizes
    ]
    blocks = [(name, start // 128, count // 128) for name, start, count in rows]
    total = sum(count for _, _, count in rows)
    yield from _scaled(
        rank,
        f"{prefix}.self_attn.qkv_proj.weight",
        (total, HIDDEN),
        _stacked(rows, HIDDEN),
        _stacked(blocks, HIDDEN // 128),
    )
    output, columns = f"{prefix}.self_attn.o_proj.weight", HEADS * HEAD // 2
    yield from _scaled(
        rank,
        output,
        (HIDDEN, columns),
        [(output, (0, rank * columns), (HIDDEN, columns), 0)],
        [(output, (0, rank * columns // 128), (HIDDEN // 128, columns // 128), 0)],
    )


def _sglang_experts(rank: int, prefix: str) -> Iterator[BufferRecord]:
    local = EXPERTS // 2
    for fused, projections in (("w13", ("gate_proj", "up_proj")), ("w2", ("down_proj",))):
        boxes: list[list[Box]] = [[], []]
        height = INNER * len(projections) if fused == "w13" else HIDDEN
        width = HIDDEN if fused == "w13" else INNER
        for scale, unit in ((0, 1), (1, 128)):
            for slot in range(local):
                rows = [
                    (
                        f"{prefix}.mlp.experts.{rank * local + slot}.{projection}.weight",
                        0,
                        height // len(projections) // unit,
                    )
                    for projection in projections
                ]
                boxes[scale] += _stacked(rows, width // unit, slot * height // unit)
        name = f"{prefix}.mlp.experts.{fused}_weight"
        yield from _scaled(rank, name, (local, height, width), *boxes)


# Megatron: layers numbered from 0 on every pipeline stage, experts from 0 on every expert rank.

STAGES = ((0, 3), (3, 8))


def megatron_tensors() -> dict[str, Ints]:
    """The tensors of a small mixture of experts with eight layers."""
    tensors: dict[str, Ints] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(STAGES[-1][1]):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_proj.weight": (8 * HEAD, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (4 * HEAD, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (4 * HEAD, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, 8 * HEAD),
            f"{prefix}.mlp.gate.weight": (EXPERTS, HIDDEN),
        }
        for expert in range(EXPERTS):
            tensors |= {
                f"{prefix}.mlp.experts.{expert}.gate_proj.weight": (INNER, HIDDEN),
                f"{prefix}.mlp.experts.{expert}.up_proj.weight": (INNER, HIDDEN),
                f"{prefix}.mlp.experts.{expert}.down_proj.weight": (HIDDEN, INNER),
            }
    return tensors


def megatron_moe() -> Declaration:
    """Eight ranks: tp 2, ep 2, and pipeline stages of 3 and 5 layers."""
    axes = [
        Axis(name="tp", size=2, stride=1),
        Axis(name="ep", size=2, stride=2),
        Axis(name="pp", size=2, stride=4),
    ]
    buffers: list[BufferRecord] = []
    for pp, ep, tp in product((0, 1), (0, 1), (0, 1)):
        rank = tp + 2 * ep + 4 * pp
        half = (VOCAB // 2, HIDDEN)
        if pp == 0:
            box = ("model.embed_tokens.weight", (tp * half[0], 0), half, 0)
            buffers.append(buffer(rank, "embedding.word_embeddings.weight", half, [box]))
        else:
            box = ("lm_head.weight", (tp * half[0], 0), half, 0)
            buffers.append(buffer(rank, "output_layer.weight", half, [box]))
            norm: Box = ("model.norm.weight", (0,), (HIDDEN,), 0)
            buffers.append(buffer(rank, "decoder.final_layernorm.weight", (HIDDEN,), [norm]))
        for local, layer in enumerate(range(*STAGES[pp])):
            name, prefix = f"decoder.layers.{local}", f"model.layers.{layer}"
            buffers += _megatron_layer(rank, tp, name, prefix)
            buffers += _megatron_experts(rank, tp, ep, name, prefix)
    return declare(Side.SENDER, axes, 8, megatron_tensors(), buffers, "megatron")


def _megatron_layer(rank: int, tp: int, name: str, prefix: str) -> Iterator[BufferRecord]:
    norm = f"{prefix}.input_layernorm.weight"
    local = f"{name}.self_attention.linear_qkv.layer_norm_weight"
    yield buffer(rank, local, (HIDDEN,), [(norm, (0,), (HIDDEN,), 0)])
    router = f"{prefix}.mlp.gate.weight"
    box = (router, (0, 0), (EXPERTS, HIDDEN), 0)
    yield buffer(rank, f"{name}.mlp.router.weight", (EXPERTS, HIDDEN), [box])
    rows = [
        (f"{prefix}.self_attn.{part}.weight", (2 * tp + group) * heads * HEAD, heads * HEAD)
        for group in range(2)
        for part, heads in (("q_proj", 2), ("k_proj", 1), ("v_proj", 1))
    ]
    qkv = f"{name}.self_attention.linear_qkv.weight"
    yield buffer(rank, qkv, (8 * HEAD, HIDDEN), _stacked(rows, HIDDEN))
    output, columns = f"{prefix}.self_attn.o_proj.weight", 4 * HEAD
    box = (output, (0, tp * columns), (HIDDEN, columns), 0)
    yield buffer(rank, f"{name}.self_attention.linear_proj.weight", (HIDDEN, columns), [box])


def _megatron_experts(
    rank: int, tp: int, ep: int, name: str, prefix: str
) -> Iterator[BufferRecord]:
    half = INNER // 2
    for slot in range(EXPERTS // 2):
        expert = f"{prefix}.mlp.experts.{ep * EXPERTS // 2 + slot}"
        rows = [(f"{expert}.{part}.weight", tp * half, half) for part in ("gate_proj", "up_proj")]
        first = f"{name}.mlp.experts.linear_fc1.weight{slot}"
        yield buffer(rank, first, (INNER, HIDDEN), _stacked(rows, HIDDEN))
        box = (f"{expert}.down_proj.weight", (0, tp * half), (HIDDEN, half), 0)
        yield buffer(rank, f"{name}.mlp.experts.linear_fc2.weight{slot}", (HIDDEN, half), [box])


# FSDP: every parameter cut along dim 0 into as many chunks as there are ranks, as torch.chunk cuts.


def dense_tensors(layers: int, hidden: int, inner: int, vocab: int) -> dict[str, Ints]:
    """The tensors of a Qwen3 without experts."""
    tensors: dict[str, Ints] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_norm.weight": (128,),
            f"{prefix}.self_attn.k_norm.weight": (128,),
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (hidden // 4, hidden),
            f"{prefix}.self_attn.v_proj.weight": (hidden // 4, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}.mlp.up_proj.weight": (inner, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, inner),
        }
    return tensors


def fsdp(tensors: dict[str, Ints], ranks: int) -> Declaration:
    """Every tensor in a parameter of its own, its rows spread over the ranks."""
    buffers: list[BufferRecord] = []
    for rank, (name, shape) in product(range(ranks), tensors.items()):
        chunk = -(-shape[0] // ranks)
        start = min(rank * chunk, shape[0])
        rows = min(chunk, shape[0] - start)
        zeros = (0,) * (len(shape) - 1)
        box = (name, (start, *zeros), (rows, *shape[1:]), 0)
        buffers.append(buffer(rank, name, (rows, *shape[1:]), [box]))
    axes = [Axis(name="fsdp", size=ranks, stride=1)]
    return declare(Side.SENDER, axes, ranks, tensors, buffers, "fsdp")

"""Write this example's manifests: Qwen3-8B under FSDP on 8 ranks, and SGLang tp2 x 4 in FP8.

Sizes are those of the model's config.json (Qwen/Qwen3-8B): 36 layers, hidden size 4096, 32 query
and 8 key-value heads of 128, intermediate size 12288, vocabulary 151936, untied embeddings.
Run from anywhere: `python generate.py`.
"""

from pathlib import Path

from tranship.schema.codec import dump, write_atomically
from tranship.schema.dtypes import DType
from tranship.schema.manifest import (
    Alias,
    Axis,
    BufferFamily,
    ConstantBuffer,
    Framework,
    IntExpression,
    Kind,
    Manifest,
    Part,
    Piece,
    Scale,
    Scaled,
    Side,
    TensorFamily,
)

LAYERS = {"layer": "0..35"}
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCABULARY = 4096, 32, 8, 128, 12288, 151936
POSITIONS = 40960
FSDP, TP = 8, 2
BLOCK = 128
LAYER = "model.layers.{layer}"

LINEARS = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
NORMS = {
    "self_attn.q_norm": HEAD_DIM,
    "self_attn.k_norm": HEAD_DIM,
    "input_layernorm": HIDDEN,
    "post_attention_layernorm": HIDDEN,
}
VOCABULARY_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")


def tensors() -> tuple[TensorFamily, ...]:
    """Every logical tensor of the checkpoint."""
    layered = [(f"{LAYER}.{name}.weight", shape) for name, shape in LINEARS.items()]
    layered += [(f"{LAYER}.{name}.weight", (size,)) for name, size in NORMS.items()]
    families = [TensorFamily(name=name, indices=LAYERS, shape=shape) for name, shape in layered]
    families += [TensorFamily(name=name, shape=(VOCABULARY, HIDDEN)) for name in VOCABULARY_TENSORS]
    families.append(TensorFamily(name="model.norm.weight", shape=(HIDDEN,)))
    return tuple(families)


def fsdp_buffer(tensor: TensorFamily) -> BufferFamily:
    """A dim-0 shard on each of the FSDP ranks; every size here divides evenly."""
    rows, rest = tensor.shape[0] // FSDP, tensor.shape[1:]
    return BufferFamily(
        name=tensor.name,
        indices=tensor.indices,
        dtype=DType.BF16,
        shape=(rows, *rest),
        pieces=(
            Piece(
                tensor=tensor.name,
                start=(f"fsdp * {rows}", *(0 for _ in rest)),
                extent=(rows, *rest),
            ),
        ),
    )


def sender() -> Manifest:
    """The trainer: every parameter in BF16, cut in 8 along dim 0."""
    return Manifest(
        format="tranship.manifest/1",
        side=Side.SENDER,
        framework=Framework(name="fsdp2"),
        world_size=FSDP,
        axes=(Axis(name="fsdp", size=FSDP, stride=1),),
        tensors=tensors(),
        buffers=tuple(fsdp_buffer(tensor) for tensor in tensors()),
    )


def fused(name: str, parts: tuple[str, ...]) -> tuple[BufferFamily, BufferFamily]:
    """A column-parallel linear of SGLang: the rank's rows of each part, one after another."""
    rows = [LINEARS[part][0] // TP for part in parts]
    weight, scale = f"{LAYER}.{name}.weight", f"{LAYER}.{name}.weight_scale_inv"
    starts: list[tuple[IntExpression, IntExpression]] = [(f"tp * {n}", 0) for n in rows]
    return scaled(weight, scale, parts, starts, [(n, HIDDEN) for n in rows], sum(rows), HIDDEN)


def row_parallel(name: str) -> tuple[BufferFamily, BufferFamily]:
    """A row-parallel linear: the rank's columns."""
    rows, columns = LINEARS[name][0], LINEARS[name][1] // TP
    weight, scale = f"{LAYER}.{name}.weight", f"{LAYER}.{name}.weight_scale_inv"
    start: tuple[IntExpression, IntExpression] = (0, f"tp * {columns}")
    return scaled(weight, scale, (name,), [start], [(rows, columns)], rows, columns)


def scaled(
    weight: str,
    scale: str,
    parts: tuple[str, ...],
    starts: list[tuple[IntExpression, IntExpression]],
    extents: list[tuple[int, int]],
    rows: int,
    columns: int,
) -> tuple[BufferFamily, BufferFamily]:
    """FP8 codes and their scales, one piece of each for every part, stacked by rows."""
    codes: list[Piece] = []
    scales: list[Piece] = []
    above = 0
    for part, start, extent in zip(parts, starts, extents, strict=True):
        tensor = f"{LAYER}.{part}.weight"
        codes.append(Piece(tensor=tensor, start=start, extent=extent, offset=above * columns))
        scales.append(
            Piece(
                tensor=tensor,
                part=Part.SCALE,
                start=tuple(in_blocks(entry) for entry in start),
                extent=(extent[0] // BLOCK, extent[1] // BLOCK),
                offset=above // BLOCK * (columns // BLOCK),
            )
        )
        above += extent[0]
    return (
        BufferFamily(
            name=weight,
            indices=LAYERS,
            dtype=DType.F8E4M3FN,
            shape=(rows, columns),
            encoding=Scaled(kind="scaled", block=(BLOCK, BLOCK), scale=scale),
            pieces=tuple(codes),
        ),
        BufferFamily(
            name=scale,
            indices=LAYERS,
            dtype=DType.F32,
            shape=(rows // BLOCK, columns // BLOCK),
            encoding=Scale(kind="scale", of=weight),
            pieces=tuple(scales),
        ),
    )


def in_blocks(entry: IntExpression) -> IntExpression:
    """`tp * 2048` elements as `tp * 16` blocks."""
    if isinstance(entry, int):
        return entry // BLOCK
    axis, _, size = entry.partition(" * ")
    return f"{axis} * {int(size) // BLOCK}"


def whole(name: str, size: int, indices: dict[str, str]) -> BufferFamily:
    """A BF16 vector that every rank holds whole."""
    piece = Piece(tensor=name, start=(0,), extent=(size,))
    return BufferFamily(
        name=name, indices=indices, dtype=DType.BF16, shape=(size,), pieces=(piece,)
    )


def vocabulary_parallel(name: str) -> BufferFamily:
    """Embedding or head: the rank's rows of the vocabulary, which needs no padding here."""
    rows = VOCABULARY // TP
    piece = Piece(tensor=name, start=(f"tp * {rows}", 0), extent=(rows, HIDDEN))
    return BufferFamily(name=name, dtype=DType.BF16, shape=(rows, HIDDEN), pieces=(piece,))


def rotary_tables() -> tuple[BufferFamily, BufferFamily]:
    """Cosines and sines of the positions: one table for all layers, which no update touches."""
    first = "model.layers.0.self_attn.rotary_emb.cos_sin_cache"
    shape, dtype, kind = (POSITIONS, HEAD_DIM), DType.BF16, Kind.BUFFER
    reason = "follows from the model's configuration"
    role = ConstantBuffer(kind="constant", reason=reason)
    others = BufferFamily(
        name=f"{LAYER}.self_attn.rotary_emb.cos_sin_cache",
        indices={"layer": "1..35"},
        dtype=dtype,
        shape=shape,
        kind=kind,
        role=Alias(kind="alias", of=first),
    )
    return BufferFamily(name=first, dtype=dtype, shape=shape, kind=kind, role=role), others


def receiver() -> Manifest:
    """The engine: four replicas of tp2, linears in FP8 with 128 x 128 blocks."""
    buffers = [
        *fused("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        *row_parallel("self_attn.o_proj"),
        *fused("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
        *row_parallel("mlp.down_proj"),
        *(whole(f"{LAYER}.{name}.weight", size, LAYERS) for name, size in NORMS.items()),
        whole("model.norm.weight", HIDDEN, {}),
        *(vocabulary_parallel(name) for name in VOCABULARY_TENSORS),
    ]
    buffers += rotary_tables()
    return Manifest(
        format="tranship.manifest/1",
        side=Side.RECEIVER,
        framework=Framework(name="sglang", version="0.5.23"),
        world_size=4 * TP,
        axes=(Axis(name="tp", size=TP, stride=1), Axis(name="replica", size=4, stride=TP)),
        tensors=tensors(),
        buffers=tuple(buffers),
    )


def main() -> None:
    """Write both manifests beside this file."""
    folder = Path(__file__).parent
    write_atomically(folder / "trainer.manifest.json", dump(sender()))
    write_atomically(folder / "engine.manifest.json", dump(receiver()))


if __name__ == "__main__":
    main()

from tests.bugs.modules import LAYERS
from tests.bugs.restate import (
    FP8,
    Json,
    assert_fine,
    assert_refused,
    buffer,
    findings,
    fp8,
    manifest,
    piece,
    scaled,
    tensor,
    whole,
)

ATTENTION = "model.layers.{layer}.linear_attn"
B, A, BA = (f"{ATTENTION}.in_proj_{part}.weight" for part in ("b", "a", "ba"))
SHAPE = (64, 256)
TENSORS = [tensor(name, SHAPE, **LAYERS) for name in (B, A)]
TRAINER = manifest("sender", TENSORS, [whole(n, "bf16", SHAPE, indices=LAYERS) for n in (B, A)])


def fused(dtype: str, **fields: object) -> Json:
    """Each rank of tp has 32 rows of b above 32 rows of a."""
    start = ("tp * 32", 0)
    rows = [piece(name, (32, 256), start, offset=n * 8192) for n, name in enumerate((B, A))]
    return buffer(BA, dtype, (64, 256), *rows, indices=LAYERS, **fields)


def test_two_tensors_do_not_share_a_block_of_scales() -> None:
    """verl#6906: after tensor parallelism `in_proj_ba` is not a multiple of 128 rows."""
    scales = buffer(
        f"{BA}_scale_inv",
        "f32",
        (1, 2),
        *(piece(name, (1, 2), part="scale") for name in (B, A)),
        encoding={"kind": "scale", "of": BA},
        indices=LAYERS,
    )
    quantized = [fused(FP8, encoding=scaled(BA)), scales]
    assert_refused(
        findings(TRAINER, manifest("receiver", TENSORS, quantized, tp=(2, 1))),
        "TS166",
        f"2 elements of buffer '{BA}_scale_inv' are in more than one piece",
        f"(a piece of {B!r})",
        f"(a piece of {A!r})",
        "tensors whose blocks share a scale cannot be quantized apart",
    )
    assert_fine(TRAINER, manifest("receiver", TENSORS, [fused("bf16")], tp=(2, 1)))


def test_a_module_that_only_one_side_quantizes_is_named() -> None:
    """verl#6906: the trainer quantized what the engine's ignore list leaves in BF16."""
    quantized = [one for name in (B, A) for one in fp8(name, SHAPE, indices=LAYERS)]
    trainer = manifest("sender", TENSORS, quantized)
    engine = manifest("receiver", TENSORS, [fused("bf16")], tp=(2, 1))
    first, second = findings(trainer, engine)
    assert_refused([first], "TS402", f"{B} would be dequantized from f8e4m3fn to bf16")
    assert_refused([second], "TS402", f"{A} would be dequantized from f8e4m3fn to bf16")

from tests.bugs.modules import DOWN, LAYERS
from tests.bugs.restate import (
    Json,
    assert_fine,
    assert_refused,
    findings,
    fp8,
    manifest,
    tensor,
    whole,
)

SHAPE = (256, 128)
TENSORS = [tensor(DOWN, SHAPE, **LAYERS)]
TRAINER = manifest("sender", TENSORS, [whole(DOWN, "bf16", SHAPE, indices=LAYERS)])
CODES, SCALES = fp8(DOWN, SHAPE, indices=LAYERS)


def test_scales_that_are_not_declared_are_missed() -> None:
    """vllm#45835, vime#248: `weight_scale_inv` was allocated, never loaded, and read as NaN."""
    assert_refused(
        findings(TRAINER, manifest("receiver", TENSORS, [CODES])),
        "TS176",
        "there is no buffer 'model.layers.0.mlp.down_proj.weight_scale_inv'",
        f"which buffer {DOWN!r} names",
        "help: declare it",
    )
    assert_fine(TRAINER, manifest("receiver", TENSORS, [CODES, SCALES]))


def test_scales_that_no_update_writes_do_not_pass_for_scales() -> None:
    """The same, by an adapter that lists the buffer and leaves it to the engine."""
    left: Json = {"pieces": [], "role": {"kind": "constant", "reason": "the engine allocates it"}}
    assert_refused(
        findings(TRAINER, manifest("receiver", TENSORS, [CODES, SCALES | left])),
        "TS178",
        f"buffer {DOWN!r} holds codes of tensor 'model.layers.0.mlp.down_proj.weight'",
        "without their scales",
        "expected one piece of scales from block [0, 0] to [1, 0]",
        "keep whatever their memory was allocated with",
    )

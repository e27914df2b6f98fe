from tests.bugs.modules import DOWN, LAYERS
from tests.bugs.restate import (
    FP8,
    assert_fine,
    assert_refused,
    findings,
    fp8,
    manifest,
    policy,
    tensor,
    whole,
)

SHAPE = (256, 128)
TENSORS = [tensor(DOWN, SHAPE, **LAYERS)]


def test_an_fp8_model_is_not_sent_as_bf16_without_a_word() -> None:
    """AReaL#1359: the adapter ignored the quantization config, and the engine served BF16."""
    trainer = manifest("sender", TENSORS, fp8(DOWN, SHAPE, indices=LAYERS))
    engine = manifest("receiver", TENSORS, [whole(DOWN, "bf16", SHAPE, indices=LAYERS)])
    assert_refused(
        findings(trainer, engine),
        "TS402",
        f"{DOWN} would be dequantized from f8e4m3fn to bf16",
        "expected a policy line that allows dequantize",
        "allow it by name in the policy, or change what one side holds",
    )

    wanted = manifest("receiver", TENSORS, fp8(DOWN, SHAPE, indices=LAYERS))
    assert_fine(trainer, wanted)
    meant = {"edge": "dequantize", "tensors": DOWN, "reason": "the engine has no FP8 kernels"}
    assert_fine(trainer, engine, policy(meant | {"sender_dtype": FP8, "receiver_dtype": "bf16"}))

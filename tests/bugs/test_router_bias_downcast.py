from tests.bugs.modules import LAYERS, ROUTER_BIAS
from tests.bugs.restate import assert_fine, assert_refused, findings, manifest, tensor, whole

TENSORS = [tensor(ROUTER_BIAS, (8,), **LAYERS)]


def test_a_selection_bias_in_float32_is_not_narrowed_in_passing() -> None:
    """vllm#47777, Megatron-LM#1482: the bias lost the digits that tell experts apart."""
    bias = whole(ROUTER_BIAS, "f32", (8,), indices=LAYERS, kind="buffer")
    trainer = manifest("sender", TENSORS, [bias])
    assert_refused(
        findings(trainer, manifest("receiver", TENSORS, [bias | {"dtype": "bf16"}])),
        "TS402",
        f"{ROUTER_BIAS} would be narrowed from f32 to bf16",
        "f32 here",
        "change what one side holds",
    )
    assert_fine(trainer, manifest("receiver", TENSORS, [bias]))
    assert_fine(
        manifest("sender", TENSORS, [bias | {"dtype": "bf16"}]),
        manifest("receiver", TENSORS, [bias]),
    )

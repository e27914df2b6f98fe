from tests.bugs.modules import KV_B, LAYERS
from tests.bugs.restate import assert_refused, buffer, findings, manifest, plan_of, tensor, whole

SHAPE = (256, 64)
TENSORS = [tensor(KV_B, SHAPE, **LAYERS)]
HELD = whole(KV_B, "bf16", SHAPE, indices=LAYERS)
W_UK_T = "model.layers.{layer}.self_attn.W_UK_T"


def test_a_plan_that_does_not_recompute_absorbed_weights_is_refused() -> None:
    """vllm#48312 (#48251): W_UV and W_UK_T did not follow kv_b_proj in an update."""
    role = {"kind": "derived", "recipe": "absorb_kv_b", "inputs": [KV_B]}
    absorbed = buffer(W_UK_T, "bf16", (2, 64, 64), role=role, kind="attribute", indices=LAYERS)
    sender = manifest("sender", TENSORS, [HELD])
    receiver = manifest("receiver", TENSORS, [HELD, absorbed])
    plan = plan_of(sender, receiver)
    assert_refused(
        findings(sender, receiver, plan=plan.model_copy(update={"derived": ()})),
        "TS620",
        "derived buffer 'model.layers.0.self_attn.W_UK_T' on receiver rank 0 is never recomputed",
    )
    assert findings(sender, receiver, plan=plan) == ()


def test_absorbed_weights_of_a_buffer_that_is_not_there_are_refused() -> None:
    """The same, where the engine deleted kv_b_proj once it had absorbed it."""
    role = {"kind": "derived", "recipe": "absorb_kv_b", "inputs": [f"{KV_B}.original"]}
    absorbed = buffer(W_UK_T, "bf16", (2, 64, 64), role=role, kind="attribute", indices=LAYERS)
    sender = manifest("sender", TENSORS, [HELD])
    assert_refused(
        findings(sender, manifest("receiver", TENSORS, [HELD, absorbed])),
        "TS183",
        "there is no buffer 'model.layers.0.self_attn.kv_b_proj.weight.original'",
        f"which buffer {W_UK_T!r} names",
        "declare it, or correct the name",
    )

from tests.bugs.modules import EXPERTS, HIDDEN, INNER, KV_B, LAYERS, W2
from tests.bugs.restate import (
    assert_fine,
    assert_refused,
    buffer,
    findings,
    manifest,
    tensor,
    whole,
)

SHAPE = (256, 64)
TENSORS = [tensor(KV_B, SHAPE, **LAYERS)]
TRAINER = manifest("sender", TENSORS, [whole(KV_B, "bf16", SHAPE, indices=LAYERS)])
RECEIVED = whole(KV_B, "bf16", SHAPE, indices=LAYERS)
W_KC = "model.layers.{layer}.self_attn.w_kc"


def test_absorbed_weights_are_not_transformed_in_place() -> None:
    """sglang#30761: w_kc and w_vc were transformed again on top of the last update's result."""
    again = {"kind": "derived", "recipe": "absorb_kv_b", "inputs": [KV_B, W_KC]}
    absorbed = buffer(W_KC, "bf16", (2, 64, 64), role=again, kind="attribute", indices=LAYERS)
    assert_refused(
        findings(TRAINER, manifest("receiver", TENSORS, [RECEIVED, absorbed])),
        "TS195",
        f"buffer {W_KC!r} is derived from itself: each update would transform it again",
        "expected inputs that an update writes, in another buffer than the result",
        "receive the untransformed values in a buffer of their own",
    )

    once = {"role": again | {"inputs": [KV_B]}}
    assert_fine(TRAINER, manifest("receiver", TENSORS, [RECEIVED, absorbed | once]))


def test_a_frozen_draft_is_not_processed_with_every_update() -> None:
    """miles#1926: the draft got no weights, but was shuffled in place again after every step."""
    draft = f"draft.{W2}"
    shape = (EXPERTS, HIDDEN, INNER)
    frozen = {"kind": "constant", "reason": "the draft model is not trained"}
    shuffled = {"kind": "derived", "recipe": "shuffle", "inputs": [f"{draft}_checkpoint"]}
    weights = buffer(f"{draft}_checkpoint", "bf16", shape, role=frozen, indices=LAYERS)
    kernel = buffer(draft, "bf16", shape, role=shuffled, indices=LAYERS)
    assert_refused(
        findings(TRAINER, manifest("receiver", TENSORS, [RECEIVED, weights, kernel])),
        "TS196",
        f"buffer {draft!r} is derived from buffers that no update changes",
        f"found constant '{draft}_checkpoint'",
        "declare it constant too",
    )

    left_alone = [RECEIVED, weights, kernel | {"role": frozen}]
    assert_fine(TRAINER, manifest("receiver", TENSORS, left_alone))


def test_a_draft_without_a_sender_is_not_part_of_the_transfer() -> None:
    """miles#1926, when the draft's weights are declared as the update's."""
    fc = "draft.model.fc.weight"
    declared = [*TENSORS, tensor(fc, (64, 128))]
    assert_refused(
        findings(TRAINER, manifest("receiver", declared, [RECEIVED, whole(fc, "bf16", (64, 128))])),
        "TS201",
        f"no sender piece holds {fc}",
        "declare the receiver's buffer constant or derived",
    )

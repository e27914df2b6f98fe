from tests.bugs.modules import LAYERS, W2, expert
from tests.bugs.restate import (
    assert_fine,
    assert_refused,
    buffer,
    findings,
    manifest,
    piece,
    tensor,
    whole,
)

DOWN = expert("down")
MEMBERS = {"layer": "0..1", "expert": "0..1"}
TENSORS = [tensor(DOWN, (100, 64), **MEMBERS)]
TRAINER = manifest("sender", TENSORS, [whole(DOWN, "bf16", (100, 64), indices=MEMBERS)])


def test_padding_that_nobody_writes_is_found() -> None:
    """vllm#48312 (#50523): zeros that a kernel needs were lost when weights were made anew."""
    held = piece(DOWN, (100, 64), indices={"expert": "0..1"}, offset="expert * 8192")
    padded = buffer(W2, "bf16", (2, 128, 64), held, indices=LAYERS)
    assert_refused(
        findings(TRAINER, manifest("receiver", TENSORS, [padded])),
        "TS167",
        f"3,584 of the 16,384 elements of buffer {W2!r} are in no piece and no fill",
        "found the first is element [0, 100, 0]",
        "add the pieces that hold them, or a fill with a value",
    )

    zeros = {"offset": 6400, "sizes": [2, 28, 64], "strides": [8192, 64, 1], "value": 0}
    assert_fine(TRAINER, manifest("receiver", TENSORS, [padded | {"fills": [zeros]}]))

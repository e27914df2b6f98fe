from tests.bugs.modules import DOWN, LAYERS
from tests.bugs.restate import (
    assert_fine,
    assert_refused,
    findings,
    fp8,
    manifest,
    scaled,
    tensor,
    whole,
)

SHAPE = (256, 128)
TENSORS = [tensor(DOWN, SHAPE, **LAYERS)]
CODES, SCALES = fp8(DOWN, SHAPE, indices=LAYERS)
POWERS = CODES | {"encoding": scaled(DOWN, scale_values="power_of_two")}
EXPONENTS = SCALES | {"dtype": "f8e8m0fnu"}
PLAIN = manifest("sender", TENSORS, [whole(DOWN, "bf16", SHAPE, indices=LAYERS)])


def test_raw_scales_are_not_served_as_exponents() -> None:
    """sglang#30761: after a reload, shapes that stayed alike had raw scales read as UE8M0."""
    raw = manifest("sender", TENSORS, [CODES, SCALES])
    latched = manifest("receiver", TENSORS, [POWERS, SCALES])
    assert_refused(
        findings(raw, latched),
        "TS402",
        f"{DOWN} would be requantized",
        "the receiver takes powers of two as scales, the sender's are any",
    )
    assert_fine(PLAIN, latched)
    assert_fine(manifest("sender", TENSORS, [POWERS, SCALES]), latched)


def test_scales_stored_as_exponents_are_powers_of_two() -> None:
    """sglang#30761, within one side: the format was latched, and the scales did not fit it."""
    assert_refused(
        findings(PLAIN, manifest("receiver", TENSORS, [CODES, EXPONENTS])),
        "TS180",
        f"the scales of {DOWN!r} are stored as f8e8m0fnu",
        "expected scale_values power_of_two; found any",
        "say power_of_two if the engine reads exponents",
    )
    assert_fine(PLAIN, manifest("receiver", TENSORS, [POWERS, EXPONENTS]))


def test_exponents_are_not_sent_to_an_engine_with_float_scales() -> None:
    """prime-rl#3112: UE8M0 scales were made for Hopper too, where they are coarser for nothing."""
    hopper = manifest("receiver", TENSORS, [CODES, SCALES])
    assert_refused(
        findings(manifest("sender", TENSORS, [POWERS, EXPONENTS]), hopper),
        "TS402",
        f"{DOWN} would be requantized",
        "scales are f8e8m0fnu and f32",
    )
    assert_fine(PLAIN, hopper)

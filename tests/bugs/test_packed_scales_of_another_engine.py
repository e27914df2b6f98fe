import pytest

from tests.bugs.modules import DOWN, LAYERS
from tests.bugs.restate import (
    FP8,
    Json,
    assert_fine,
    assert_refused,
    findings,
    fp8,
    manifest,
    plan_of,
    scaled,
    tensor,
    whole,
)
from tranship.schema.codec import digest, dump

SHAPE = (256, 512)
TENSORS = [tensor(DOWN, SHAPE, **LAYERS)]
_, FLOATS = fp8(DOWN, SHAPE, indices=LAYERS)
CODES: Json = whole(DOWN, FP8, SHAPE, indices=LAYERS) | {
    "encoding": scaled(DOWN, scale_values="power_of_two")
}
SCALES: Json = FLOATS | {"dtype": "f8e8m0fnu"}
PACKED: Json = {"layout": "deepgemm_mn_major_ue8m0"}
RAW = manifest("receiver", TENSORS, [CODES, SCALES], "vllm")
BF16 = manifest("sender", TENSORS, [whole(DOWN, "bf16", SHAPE, indices=LAYERS)])


def test_scales_packed_for_deepgemm_are_not_sent_to_an_engine_that_reads_them_raw() -> None:
    """vime#133: the quantizer for SGLang packed scales mn-major; vLLM wanted [n/128, k/128]."""
    assert_refused(
        findings(manifest("sender", TENSORS, [CODES, SCALES | PACKED]), RAW),
        "TS403",
        f"holds the scales of {DOWN} in layout row_major",
        "and the sender in deepgemm_mn_major_ue8m0",
        "expected row_major at the sender; found deepgemm_mn_major_ue8m0 to row_major",
    )
    assert_fine(manifest("sender", TENSORS, [CODES, SCALES]), RAW)


def test_each_engine_gets_the_scales_that_it_reads() -> None:
    """The corrected form: the trainer's values know no kernel, each receiver says its layout."""
    packed = manifest("receiver", TENSORS, [CODES, SCALES | PACKED], "sglang")
    for sender in (BF16, manifest("sender", TENSORS, [CODES, SCALES])):
        assert_fine(sender, RAW)
        assert_fine(sender, packed)


def test_packed_scales_are_not_read() -> None:
    """Not even for an engine that holds them alike: a sender's would have to be unpacked."""
    sent = manifest("sender", TENSORS, [CODES, SCALES | PACKED])
    taken = manifest("receiver", TENSORS, [CODES, SCALES | PACKED])
    assert_refused(
        findings(sent, taken),
        "TS403",
        "found deepgemm_mn_major_ue8m0 to deepgemm_mn_major_ue8m0",
    )
    plan = plan_of(manifest("sender", TENSORS, [CODES, SCALES]), taken)
    claimed = plan.sender.model_copy(update={"manifest": digest(dump(sent))})
    plan = plan.model_copy(update={"sender": claimed})
    assert_refused(findings(sent, taken, plan=plan), "TS644", "found deepgemm_mn_major_ue8m0;")


@pytest.mark.parametrize("dtype", ["i32", "u8"])
def test_scales_packed_as_integers_are_no_scales(dtype: str) -> None:
    """vime#133, as DeepGEMM stores them: four exponents in an int32."""
    assert_refused(
        findings(manifest("sender", TENSORS, [CODES, SCALES | PACKED | {"dtype": dtype}]), RAW),
        "TS173",
        f"{DOWN}_scale_inv' holds scales, and its dtype is {dtype}",
        "expected bf16 or f32 or f8e8m0fnu",
    )


def test_scales_that_are_no_exponents_are_not_packed() -> None:
    """Neither those of a receiver, nor a sender's that may be any, for one that takes exponents."""
    floats = manifest("receiver", TENSORS, [CODES, FLOATS | PACKED])
    assert_refused(findings(BF16, floats), "TS198", "expected dtype f8e8m0fnu; found f32")
    any_values = manifest("sender", TENSORS, fp8(DOWN, SHAPE, indices=LAYERS))
    packed = manifest("receiver", TENSORS, [CODES, SCALES | PACKED])
    found = findings(any_values, packed)
    assert_refused(found, "TS402", "would be requantized", "scales are f32 and f8e8m0fnu")

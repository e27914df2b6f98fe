import pytest

from tests.bugs.modules import DOWN, LAYERS
from tests.bugs.restate import Json, assert_fine, assert_refused, findings, fp8, manifest, tensor

SHAPE = (256, 128)
TENSORS = [tensor(DOWN, SHAPE, **LAYERS)]
CODES, SCALES = fp8(DOWN, SHAPE, indices=LAYERS)
RAW = manifest("receiver", TENSORS, [CODES, SCALES], "vllm")
PACKED: Json = {"layout": "deepgemm_mn_major_ue8m0"}


def test_scales_packed_for_deepgemm_are_not_sent_to_an_engine_that_reads_them_raw() -> None:
    """vime#133: the quantizer for SGLang packed scales mn-major; vLLM wanted [n/128, k/128]."""
    assert_refused(
        findings(manifest("sender", TENSORS, [CODES, SCALES | PACKED]), RAW),
        "TS403",
        f"holds the scales of {DOWN} in layout row_major",
        "and the sender in deepgemm_mn_major_ue8m0",
        "expected equal layouts; found deepgemm_mn_major_ue8m0 to row_major",
    )
    assert_fine(manifest("sender", TENSORS, [CODES, SCALES]), RAW)


@pytest.mark.parametrize("dtype", ["i32", "u8"])
def test_scales_packed_as_integers_are_no_scales(dtype: str) -> None:
    """vime#133, as DeepGEMM stores them: four exponents in an int32."""
    assert_refused(
        findings(manifest("sender", TENSORS, [CODES, SCALES | PACKED | {"dtype": dtype}]), RAW),
        "TS173",
        f"{DOWN}_scale_inv' holds scales, and its dtype is {dtype}",
        "expected bf16 or f32 or f8e8m0fnu",
    )

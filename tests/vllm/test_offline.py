"""Offline manifests against what real vLLM models load, tensor by tensor."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.vllm.cases import CASES, Case
from tests.vllm.marks import NEEDS_VLLM
from tests.vllm.results import Result
from tranship.models.produce import Request, produce
from tranship.schema.expand import expand
from tranship.schema.records import BufferRecord

pytestmark = NEEDS_VLLM


def comparable(record: BufferRecord) -> BufferRecord:
    """Leave out of a buffer why no update changes it, which is for people."""
    return replace(record, role=replace(record.role, reason=""))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_an_offline_manifest_is_what_the_engine_loads(
    engine: Callable[[Case], Result], case: Case
) -> None:
    result = engine(case)
    options = {
        "tensor_parallel_size": str(case.tp),
        "enable_expert_parallel": str(case.ep > 1).lower(),
    }
    offline = produce(Request(case.model, result.config, "vllm", options))
    for rank in range(case.tp):
        theirs, ours = expand(result.manifest(rank)), expand(offline, [rank])
        assert (ours.tensors, ours.axes) == (theirs.tensors, theirs.axes)
        assert ours.quantization == theirs.quantization
        held = {buffer.name: comparable(buffer) for buffer in ours.buffers}
        for buffer in theirs.buffers:
            assert held.pop(buffer.name) == comparable(buffer)
        assert not held

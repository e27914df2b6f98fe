"""Traces of real vLLM models against what the models' own code loads."""

from collections.abc import Callable

import pytest
import torch

from tests.sglang.replay import bits, replayed
from tests.vllm.cases import CASES, Case
from tests.vllm.engines import Memory
from tests.vllm.marks import NEEDS_VLLM
from tests.vllm.results import Result
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.frameworks.vllm.trace import PASSING, UNTOUCHED
from tranship.schema.expand import expand
from tranship.schema.records import BufferRecord

pytestmark = NEEDS_VLLM


def memory(record: BufferRecord) -> Memory:
    """Describe a buffer as `engines.py` does."""
    layout = [*record.shape], [*record.strides]
    return record.kind, record.dtype, *layout, record.role.of


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_declared_rank_holds_what_vllm_loads(
    engine: Callable[[Case], Result], case: Case
) -> None:
    result = engine(case)
    checkpoint = result.checkpoint()
    for rank in range(case.tp):
        declaration = expand(result.manifest(rank))
        held, untouched = result.loaded(rank), result.untouched(rank)
        assert (declaration.world_size, declaration.ranks) == (case.tp, (rank,))
        assert [axis.name for axis in declaration.axes] == (["tp", "ep"] if case.ep > 1 else ["tp"])
        declared = {buffer.name: buffer for buffer in declaration.buffers}
        left_out = held.keys() - declared.keys()
        assert {name.rpartition(".")[2] for name in left_out} <= PASSING
        assert left_out <= untouched
        derived = result.derived(rank)
        for name, buffer in declared.items():
            if name in derived:
                assert memory(buffer) == derived.pop(name)
                assert buffer.role.kind == ("derived" if case.fp8 else "alias")
                continue
            tensor = held.pop(name)
            assert (torch_dtype(buffer.dtype), buffer.shape) == (tensor.dtype, tuple(tensor.shape))
            match buffer.role.kind:
                case "transfer":
                    assert torch.equal(bits(replayed(buffer, checkpoint)), bits(tensor)), name
                case "alias":
                    original = result.loaded(rank)[buffer.role.of]
                    assert torch.equal(bits(original), bits(tensor)), name
                case kind:
                    assert (kind, name.rpartition(".")[2] in UNTOUCHED) == ("constant", True)
                    assert name in untouched
        assert held.keys() == left_out
        assert not derived

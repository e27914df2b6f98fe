"""Two processes on a GPU: one offers tensors of each allocator, the other maps them."""

from contextlib import closing
from importlib.util import find_spec

import pytest
import torch

from tests.runtime.memory_owner import SIZES, Remote, pattern, remote_owner, total
from tranship.runtime.bind import location
from tranship.runtime.sharing.mapping import Mapped, open_offer
from tranship.runtime.sharing.offer import Allocation, Offer, make_offer
from tranship.schema.diagnostics import DiagnosticError
from tranship.schema.manifest import Side

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(find_spec("cuda") is None, reason="no cuda-bindings"),
]

SHAREABLE = {"default": "ipc", "pool": "ipc", "expandable": "descriptors"}
"""Allocators, and how their memory is shared."""

each_allocator = pytest.mark.parametrize("allocator", list(SHAREABLE))
each_renewed = pytest.mark.parametrize("allocator", ["default", "expandable"])


def opened(owner: Remote, ordinal: int = 0) -> tuple[Offer, Mapped]:
    offer, descriptors = owner.offer()
    return offer, open_offer(offer, descriptors, torch.device("cuda", ordinal))


def holding(offer: Offer, name: str) -> Allocation:
    return offer.allocations[offer.regions[name].allocation]


@each_allocator
def test_tensors_of_another_process_are_read_and_written(allocator: str) -> None:
    with remote_owner(allocator) as owner:
        offer, mapped = opened(owner)
        assert {found.kind for found in offer.allocations} == {SHAREABLE[allocator]}
        assert {name: region.length for name, region in offer.regions.items()} == SIZES
        with closing(mapped):
            for name, size in SIZES.items():
                memory = mapped.memory(name)
                assert memory.data_ptr() == mapped.address(name)
                assert memory.device == torch.device("cuda", 0)
                assert torch.equal(memory.cpu(), pattern(size))
                owner.ask("fill", name, 7)
                assert total(memory) == 7 * size
                memory.fill_(9)
                torch.cuda.synchronize()
                assert owner.total(name) == 9 * size


def test_a_tensor_in_several_chunks_is_mapped_in_one_piece() -> None:
    with remote_owner("expandable") as owner:
        offer, mapped = opened(owner)
        mapped.close()
        chunks = holding(offer, "big").chunks
        assert len(chunks) > 1
        assert len({chunk.identity for chunk in chunks}) == len(chunks)


@each_allocator
def test_what_was_closed_is_opened_again(allocator: str) -> None:
    with remote_owner(allocator) as owner:
        first, mapped = opened(owner)
        mapped.close()
        mapped.close()
        assert owner.total("big") == total(pattern(SIZES["big"]))
        second, mapped = opened(owner)
        with closing(mapped):
            assert second == first
            assert torch.equal(mapped.memory("small").cpu(), pattern(SIZES["small"]))


@each_renewed
def test_a_stale_mapping_reads_old_data_and_offers_tell(allocator: str) -> None:
    with remote_owner(allocator) as owner:
        offer, mapped = opened(owner)
        with closing(mapped):
            assert owner.look() == offer
            owner.ask("renew")
            owner.ask("fill", "big", 3)
            renewed = owner.look()
            assert holding(renewed, "big") != holding(offer, "big")
            assert renewed != offer
            assert torch.equal(mapped.memory("big").cpu(), pattern(SIZES["big"]))
        _, mapped = opened(owner)
        with closing(mapped):
            assert total(mapped.memory("big")) == 3 * SIZES["big"]


def test_memory_of_a_pool_of_the_driver_is_refused() -> None:
    with remote_owner("async") as owner:
        answer, descriptors = owner.ask("offer")
    assert (answer.offer, descriptors) == (None, [])
    assert len(answer.refused) == len(SIZES)
    for name, refused in zip(SIZES, answer.refused, strict=True):
        assert f"sender rank 0: TS816: {name!r} lies in" in refused
        assert "cudaMallocAsync" in refused


def test_a_process_does_not_map_its_own_memory() -> None:
    tensors = {"weight": torch.ones(4 << 20, dtype=torch.uint8, device="cuda:0")}
    offer, descriptors = make_offer(tensors, location(Side.SENDER, 0))
    with pytest.raises(DiagnosticError, match="TS817: the memory is this process's own"):
        open_offer(offer, descriptors, torch.device("cuda", 0))


@pytest.mark.multigpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
@each_allocator
def test_another_gpu_reads_and_writes(allocator: str) -> None:
    with remote_owner(allocator) as owner:
        _, mapped = opened(owner, ordinal=1)
        with closing(mapped):
            memory = mapped.memory("big")
            assert memory.device == torch.device("cuda", 1)
            assert torch.equal((memory ^ 1).cpu(), pattern(SIZES["big"]) ^ 1)
            memory.fill_(9)
            torch.cuda.synchronize(1)
            assert owner.total("big") == 9 * SIZES["big"]

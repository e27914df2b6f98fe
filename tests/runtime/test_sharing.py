"""Offers and mappings, against a fake driver."""

import json
import os
from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.runtime.channel_peer import open_descriptors
from tests.runtime.fake_cuda import FIRST_MAPPED, MIB, FakeCuda, Kind, fake_tensor
from tranship.runtime.bind import location
from tranship.runtime.sharing import offer as offers
from tranship.runtime.sharing.cuda_calls import CudaError
from tranship.runtime.sharing.mapping import Mapped, open_offer
from tranship.runtime.sharing.offer import Allocation, Chunk, Offer, Region, make_offer
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.manifest import Side

WHERE = location(Side.SENDER, 3)
GPU = torch.device("cuda", 0)

BLOCK, BIG, CHUNKS, APART = 0x1000000, 0x9000000, 0x40000000, 0x80000000
"""Where the fake driver has a small block, a big one, three chunks in a row, and a fourth."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.add(BLOCK, 2 * MIB, "malloc")
    fake.add(BIG, 40 * MIB, "malloc")
    for number in range(3):
        fake.add(CHUNKS + 20 * MIB * number, 20 * MIB, "chunk")
    fake.add(APART, 2 * MIB, "chunk")
    fake.install(monkeypatch)
    return fake


def tensors() -> dict[str, Tensor]:
    """In an order that is not that of addresses; the longest spans three chunks."""
    return {
        "big": fake_tensor(BIG + 3 * MIB, 17 * MIB),
        "small": fake_tensor(BLOCK + 13312, 1000),
        "apart": fake_tensor(APART + 512, 1024),
        "other": fake_tensor(BLOCK + 512, 5000),
        "empty": fake_tensor(0, 0),
        "long": fake_tensor(CHUNKS + 19 * MIB, 22 * MIB),
    }


def offered(found: Mapping[str, Tensor] | None = None) -> Offer:
    """An offer whose descriptors are closed."""
    offer, descriptors = make_offer(tensors() if found is None else found, WHERE)
    for descriptor in descriptors:
        os.close(descriptor)
    return offer


def reported(found: Mapping[str, Tensor]) -> list[Diagnostic]:
    """What is wrong with memory that cannot be offered; nothing stays open."""
    before = open_descriptors()
    with pytest.raises(DiagnosticError) as caught:
        make_offer(found, WHERE)
    assert open_descriptors() == before
    return list(caught.value.diagnostics)


# --- offers -------------------------------------------------------------------------------------


def test_tensors_of_one_allocation_share_it(cuda: FakeCuda) -> None:
    offer, descriptors = make_offer(tensors(), WHERE)
    numbers = [int(os.pread(descriptor, 20, 0)) for descriptor in descriptors]
    block, big, chunks, apart = offer.allocations
    assert block == Allocation(kind="ipc", size=2 * MIB, handle=f"{'e803':0<128}")
    assert big == Allocation(kind="ipc", size=40 * MIB, handle=f"{'e903':0<128}")
    assert chunks.chunks == tuple(Chunk(20 * MIB, number) for number in (1002, 1003, 1004))
    assert apart == Allocation(kind="descriptors", size=2 * MIB, chunks=(Chunk(2 * MIB, 1005),))
    assert numbers == [1002, 1003, 1004, 1005]
    assert offer.device == "GPU-a"
    assert offer.regions == {
        "other": Region(0, 512, 5000),
        "small": Region(0, 13312, 1000),
        "big": Region(1, 3 * MIB, 17 * MIB),
        "long": Region(2, 19 * MIB, 22 * MIB),
        "apart": Region(3, 512, 1024),
    }
    for descriptor in descriptors:
        os.close(descriptor)
    assert cuda.references == 0


def test_the_driver_is_asked_once_for_what_many_tensors_lie_in(cuda: FakeCuda) -> None:
    many = {f"{n}": fake_tensor(BIG + 4096 * n, 4096) for n in range(5000)}
    offer = offered(many)
    assert len(offer.regions) == 5000
    assert cuda.calls["cuMemGetAddressRange"] == cuda.calls["cudaIpcGetMemHandle"] == 1


KINDS: tuple[Kind, ...] = ("malloc", "chunk")
LAYOUTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(KINDS)), min_size=1, max_size=8
)


@given(LAYOUTS, st.data())
@settings(max_examples=80, deadline=None)
def test_every_region_is_where_its_tensor_is(
    layout: list[tuple[int, int, Kind]], data: st.DataObject
) -> None:
    fake, at = FakeCuda(), 64
    for gap, size, kind in layout:
        fake.add(at + gap * 16, size * 16, kind)
        at += (gap + size) * 16
    runs: list[tuple[int, int]] = []  # each tensor is in one
    last: Kind = "malloc"
    for memory in fake.memory:
        joins = last == memory.kind == "chunk" and runs[-1][1] == memory.base
        start = runs.pop()[0] if joins else memory.base
        runs.append((start, memory.base + memory.size))
        last = memory.kind
    found: dict[str, Tensor] = {}
    for number in range(data.draw(st.integers(1, 6))):
        low, high = data.draw(st.sampled_from(runs))
        start = data.draw(st.integers(low, high - 1))
        found[f"{number}"] = fake_tensor(start, data.draw(st.integers(1, high - start)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake.install(monkeypatch)
        offer = offered(found)
    by_number = {memory.number: memory for memory in fake.memory}
    bases: list[int] = []
    for allocation in offer.allocations:
        numbers = [chunk.identity for chunk in allocation.chunks]
        if allocation.handle is not None:
            numbers = [int.from_bytes(bytes.fromhex(allocation.handle), "little")]
        parts = [by_number[number] for number in numbers]
        assert all(one.base + one.size == two.base for one, two in pairwise(parts))
        assert allocation.size == sum(part.size for part in parts)
        bases.append(parts[0].base)
    places = {
        name: (bases[region.allocation] + region.offset, region.length)
        for name, region in offer.regions.items()
    }
    assert places == {name: (t.data_ptr(), t.numel()) for name, t in found.items()}
    assert fake.calls["cuMemGetAddressRange"] <= len(fake.memory)


def test_offers_of_the_same_memory_are_equal(cuda: FakeCuda) -> None:
    offer = offered()
    assert offered() == offer
    assert Offer.model_validate_json(offer.model_dump_json()) == offer


@pytest.mark.parametrize(
    ("base", "kind"), [(BLOCK, "malloc"), (BIG, "malloc"), (CHUNKS + 20 * MIB, "chunk")]
)
def test_memory_allocated_anew_at_its_address_makes_another_offer(
    cuda: FakeCuda, base: int, kind: Kind
) -> None:
    offer = offered()
    (size,) = [memory.size for memory in cuda.memory if memory.base == base]
    cuda.add(base, size, kind)
    renewed = offered()
    assert renewed.regions == offer.regions
    assert renewed != offer


def test_offers_of_two_processes_differ(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = offered()
    monkeypatch.setattr(offers, "_PROCESS", "0" * 32)
    assert offered() != offer


def test_memory_that_cannot_be_shared_is_reported_by_tensor(cuda: FakeCuda) -> None:
    cuda.add(0x100, 0x100, "pooled")
    cuda.add(0x200, 0x100, "sealed")
    cuda.add(0x300, 0x100, "foreign")
    found = reported(
        tensors()
        | {
            "pooled": fake_tensor(0x110, 16),
            "sealed": fake_tensor(0x210, 16),
            "foreign": fake_tensor(0x310, 16),
            "nowhere": fake_tensor(0x500, 16),
            "host": torch.zeros(4),
            "second": fake_tensor(BLOCK, 16, "cuda:1"),
            "meta": torch.zeros(4, device="meta"),
        }
    )
    assert {(finding.code, finding.at) for finding in found} == {("TS816", WHERE)}
    texts = {finding.message.split("'")[1]: (finding.message, finding.help) for finding in found}
    for name, message, advice in [
        ("pooled", "lies in stream-ordered memory, as of cudaMallocAsync", "torch.cuda.MemPool"),
        ("sealed", "as in a region of torch_memory_saver", "keep the weights out of such a region"),
        ("foreign", "unknown kind (cudaIpcGetMemHandle failed with cudaErr", "default allocator"),
        ("nowhere", "unknown kind (cuMemGetAddressRange failed with CUDA_", "default allocator"),
        ("host", "memory of the device cpu", "move the tensor to the GPU"),
        ("second", "memory of cuda:1", "offer it apart from that of cuda:0"),
        ("meta", "no memory of its own", "default allocator"),
    ]:
        text, help_text = texts.pop(name)
        assert message in text
        assert advice in str(help_text)
    assert not texts
    assert cuda.references == 0


def test_a_tensor_is_reported_if_its_last_chunk_cannot_be_shared(cuda: FakeCuda) -> None:
    cuda.add(CHUNKS + 40 * MIB, 20 * MIB, "sealed")
    fitting = {"short": fake_tensor(CHUNKS, 40 * MIB)}
    assert offered(fitting).regions == {"short": Region(0, 0, 40 * MIB)}
    (finding,) = reported(fitting | {"long": fake_tensor(CHUNKS, 40 * MIB + 1)})
    assert finding.message.startswith("'long' lies in mapped memory made without a way to export")


def test_nothing_is_offered_without_a_gpu(cuda: FakeCuda) -> None:
    (finding,) = reported({"host": torch.zeros(4), "empty": torch.zeros(0)})
    assert finding.message == "'host' lies in memory of the device cpu"
    with pytest.raises(ValueError, match="a tensor with elements"):
        make_offer({"empty": torch.zeros(0)}, WHERE)


def test_a_failure_while_exporting_leaves_nothing_open(cuda: FakeCuda) -> None:
    before = open_descriptors()
    cuda.failing = ("cuPointerGetAttribute", 5)  # two for each chunk
    with pytest.raises(CudaError):
        make_offer(tensors(), WHERE)
    assert (open_descriptors(), cuda.references) == (before, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": {"a": (4, 0, 1)}}, "'a' is in allocation 4, which is not there"),
        ({"regions": {"a": (0, 1, 2 * MIB)}}, "'a' ends 1 bytes after its memory"),
        ({"regions": {"a": (0, 2**62, 1)}}, "after its memory"),
        ({"regions": {"a": (0, -1, 1)}}, "greater than or equal to 0"),
        ({"regions": {"a": (-1, 0, 1)}}, "greater than or equal to 0"),
        ({"regions": {"a": (0, 0, 0)}}, "greater than or equal to 1"),
        ({"allocations": [{"kind": "ipc", "size": 1}], "regions": {}}, "a handle goes with"),
        (
            {"allocations": [{"kind": "ipc", "size": 1, "handle": "e8" * 63}], "regions": {}},
            "should match pattern",
        ),
        (
            {
                "allocations": [{"kind": "descriptors", "size": 9, "chunks": [(4, 1), (4, 2)]}],
                "regions": {},
            },
            "the chunks have not 9 bytes together",
        ),
        ({"format": "tranship.offer/2"}, "tranship.offer/1"),
    ],
)
def test_an_offer_that_contradicts_itself_is_refused(
    cuda: FakeCuda, change: dict[str, object], message: str
) -> None:
    told = json.loads(offered().model_dump_json()) | change
    with pytest.raises(ValidationError, match=message):
        Offer.model_validate_json(json.dumps(told))


# --- mappings -----------------------------------------------------------------------------------


def opened(device: torch.device = GPU) -> Mapped:
    return open_offer(*make_offer(tensors(), WHERE), device)


def test_regions_are_at_their_offsets_in_what_is_mapped(cuda: FakeCuda) -> None:
    before = open_descriptors()
    mapped = opened()
    assert [what for what, _ in cuda.open] == [
        *["handle"] * 2,
        *["addresses", "chunk", "chunk", "chunk"],
        *["addresses", "chunk"],
    ]
    block, big, chunks, *parts, apart, part = (base for _, base in cuda.open)
    assert block == FIRST_MAPPED
    assert parts == [chunks, chunks + 20 * MIB, chunks + 40 * MIB]
    assert part == apart
    assert {name: mapped.address(name) for name in ("other", "small", "big", "long", "apart")} == {
        "other": block + 512,
        "small": block + 13312,
        "big": big + 3 * MIB,
        "long": chunks + 19 * MIB,
        "apart": apart + 512,
    }
    with pytest.raises(KeyError):
        mapped.address("empty")
    assert cuda.accessible == [(chunks, 60 * MIB, 0), (apart, 2 * MIB, 0)]
    assert (open_descriptors(), cuda.references) == (before, 0)


def test_closing_undoes_everything_once_after_waiting_for_the_gpu(cuda: FakeCuda) -> None:
    mapped = opened()
    expected = list(reversed(cuda.open))
    mapped.close()
    mapped.close()
    assert cuda.undone == expected
    assert cuda.synchronized == [0]
    assert cuda.devices == []
    for use in (mapped.address, mapped.memory):
        with pytest.raises(ValueError, match="the mapping is closed"):
            use("big")


@pytest.mark.parametrize(
    ("failing", "undone"), [(("synchronize", 0), 8), (("undo", 0), 7), (("undo", 4), 7)]
)
def test_what_fails_while_closing_keeps_nothing_else_mapped(
    cuda: FakeCuda, failing: tuple[str, int], undone: int
) -> None:
    mapped = opened()
    cuda.failing = failing
    with pytest.raises(CudaError):
        mapped.close()
    assert cuda.open == []
    assert (cuda.calls["undo"], len(cuda.undone)) == (8, undone)
    mapped.close()


@pytest.mark.parametrize(
    "failing",
    [
        ("cudaIpcOpenMemHandle", 0),
        ("cudaIpcOpenMemHandle", 1),
        ("cuMemAddressReserve", 0),
        ("cuMemImportFromShareableHandle", 1),
        ("cuMemMap", 0),
        ("cuMemMap", 2),
        ("cuMemSetAccess", 0),
        ("cuMemAddressReserve", 1),
        ("cuMemSetAccess", 1),
    ],
)
def test_a_failure_while_opening_leaves_nothing_mapped(
    cuda: FakeCuda, failing: tuple[str, int]
) -> None:
    before = open_descriptors()
    cuda.failing = failing
    with pytest.raises(CudaError, match=f"{failing[0]} failed with CUDA_ERROR_OUT_OF_MEMORY"):
        opened()
    assert cuda.open == []
    assert (open_descriptors(), cuda.references) == (before, 0)


def test_descriptors_must_be_those_of_the_offer(cuda: FakeCuda) -> None:
    offer, descriptors = make_offer(tensors(), WHERE)
    os.close(descriptors.pop())
    before = open_descriptors()
    with pytest.raises(ValueError, match="3 descriptors came for 4 chunks"):
        open_offer(offer, descriptors, GPU)
    assert open_descriptors() == before - 3


def test_a_gpu_is_found_by_its_uuid(cuda: FakeCuda) -> None:
    offer, descriptors = make_offer(tensors(), WHERE)
    cuda.uuids = ("GPU-b", "GPU-a")
    cuda.peers = False
    mapped = open_offer(offer, descriptors, torch.device("cuda", 1))
    assert mapped.device == torch.device("cuda", 1)
    assert [ordinal for _, _, ordinal in cuda.accessible] == [1, 1]


def test_memory_of_a_peer_is_mapped_for_the_reader(cuda: FakeCuda) -> None:
    mapped = opened(torch.device("cuda", 1))
    assert mapped.device == torch.device("cuda", 1)
    assert [ordinal for _, _, ordinal in cuda.accessible] == [1, 1]


@pytest.mark.parametrize(
    ("uuids", "peers", "own", "message"),
    [
        (("GPU-b", "GPU-c"), True, False, "is on GPU GPU-a, which this process does not see"),
        (("GPU-b", "GPU-a"), False, False, "GPU GPU-b has no peer access to the memory of GPU"),
        (("GPU-a",), True, True, "the memory is this process's own"),
    ],
)
def test_memory_that_cannot_be_mapped_is_reported(
    cuda: FakeCuda, uuids: tuple[str, ...], peers: bool, own: bool, message: str
) -> None:
    before = open_descriptors()
    offer, descriptors = make_offer(tensors(), WHERE)
    cuda.uuids, cuda.peers, cuda.own_handles = uuids, peers, own
    with pytest.raises(DiagnosticError) as caught:
        open_offer(offer, descriptors, GPU)
    (finding,) = caught.value.diagnostics
    assert finding.code == "TS817"
    assert message in finding.message
    assert finding.help
    assert cuda.open == []
    assert open_descriptors() == before

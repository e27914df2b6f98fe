"""Whole steps on one device, by kernels and in plain torch, and how their memory is compared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from typing import cast

import torch
from torch import Tensor

from tests.runtime.small_plans import SENTINEL, Block, Buffers, Ints, Scaling, bound
from tranship.runtime.digest import transformed_digests, wire_digests, written_digests
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.execute import pack, run_fills, unpack
from tranship.runtime.kernels.rounds import Kernels, bind_kernels
from tranship.runtime.program import Program, program
from tranship.runtime.quantization import quantize
from tranship.schema.manifest import Side
from tranship.schema.plan import TransferPlan

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
GUARD = 64
"""Bytes before and after every buffer that nobody may touch."""

LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}

Slots = list[list[Tensor]]
"""Per rank, the slot of every round."""


# --- memory -------------------------------------------------------------------------------------


def placed(buffers: Mapping[int, Mapping[str, Tensor]], shift: int = 0) -> Buffers:
    """Copy buffers to the device, each `shift` elements after a multiple of 64 bytes."""
    return {
        rank: {name: _placed(tensor, shift) for name, tensor in own.items()}
        for rank, own in buffers.items()
    }


def _placed(tensor: Tensor, shift: int) -> Tensor:
    item, start = tensor.itemsize, GUARD + shift * tensor.itemsize
    payload = tensor.contiguous().view(torch.uint8).to(DEVICE)
    storage = payload.new_full((start + len(tensor) * item + GUARD,), SENTINEL)
    storage[start : start + len(payload)] = payload
    return storage.view(tensor.dtype)[start // item : start // item + len(tensor)]


def blanked(buffers: Mapping[int, Mapping[str, Tensor]]) -> Buffers:
    """Return sentinel bytes in place of what buffers hold, at the same offsets."""
    fresh = {rank: dict(own) for rank, own in buffers.items()}
    for own in fresh.values():
        for name, tensor in own.items():
            storage = torch.full_like(storage_of(tensor), SENTINEL).view(tensor.dtype)
            start = int(tensor.storage_offset())
            own[name] = storage[start : start + len(tensor)]
    return fresh


def storage_of(tensor: Tensor) -> Tensor:
    """Return all bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def different(found: Buffers, expected: Buffers) -> list[str]:
    """Name the buffers that differ in any byte of their storages; NaN may be any NaN."""
    return [
        f"rank {rank}, buffer {name}"
        for rank, own in expected.items()
        for name, tensor in own.items()
        if not torch.equal(_bytes(found[rank][name]), _bytes(tensor))
    ]


def _bytes(tensor: Tensor) -> Tensor:
    values = storage_of(tensor).view(tensor.dtype)
    if tensor.dtype.is_floating_point and tensor.itemsize > 1:
        values = torch.where(values.isnan(), torch.nan, values)
    return values.view(torch.uint8)


# --- steps --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rank:
    """A program with its memory; `slots` holds one slot per round."""

    program: Program
    buffers: list[Tensor]
    slots: list[Tensor]

    def bind(self) -> Kernels:
        return bind_kernels(self.program, self.buffers, self.slots)


def ranks(plan: TransferPlan, side: Side, buffers: Buffers) -> list[Rank]:
    """Expand the programs of all ranks of a side; slots hold sentinel bytes."""
    found: list[Rank] = []
    for rank, own in buffers.items():
        expanded = program(plan, side, rank)
        slots = [
            torch.full((item.slot_size,), SENTINEL, dtype=torch.uint8, device=DEVICE)
            for item in expanded.rounds
        ]
        found.append(Rank(expanded, bound(expanded.buffers, own), slots))
    return found


def deliver(number: int, senders: list[Rank], receivers: list[Rank]) -> None:
    """Copy the messages of a round from slot to slot."""
    for receiver in receivers:
        for message in receiver.program.rounds[number].messages:
            sender = senders[message.peer]
            sent = sender.program.rounds[number].messages
            source = next(item for item in sent if item.peer == receiver.program.rank)
            payload = sender.slots[number][source.offset : source.offset + source.size]
            receiver.slots[number][message.offset : message.offset + message.size] = payload


def by_torch(plan: TransferPlan, sender: Buffers, receiver: Buffers) -> Slots:
    """Run a step as `execute.py` does, and return the slots of all ranks."""
    senders, receivers = ranks(plan, Side.SENDER, sender), ranks(plan, Side.RECEIVER, receiver)
    for rank in receivers:
        run_fills(rank.program, rank.buffers)
    for number in range(len(plan.rounds)):
        for rank in senders:
            pack(rank.program.rounds[number], rank.buffers, rank.slots[number])
        deliver(number, senders, receivers)
        for rank in receivers:
            unpack(rank.program.rounds[number], rank.buffers, rank.slots[number])
    return [rank.slots for rank in senders + receivers]


def by_kernels(plan: TransferPlan, sender: Buffers, receiver: Buffers) -> Slots:
    """Run a step by kernels, compare all digests with `digest.py`, and return the slots."""
    senders, receivers = ranks(plan, Side.SENDER, sender), ranks(plan, Side.RECEIVER, receiver)
    sending = [rank.bind() for rank in senders]
    receiving = [rank.bind() for rank in receivers]
    for kernels in sending + receiving:
        kernels.begin()
    for number in range(len(plan.rounds)):
        for kernels in sending:
            kernels.run(number)
        deliver(number, senders, receivers)
        for kernels in receiving:
            kernels.run(number)
        for rank, kernels in zip(senders, sending, strict=True):
            assert_sender_digests(rank, kernels, number)
        for rank, kernels in zip(receivers, receiving, strict=True):
            assert_receiver_digests(rank, kernels, number)
    return [rank.slots for rank in senders + receivers]


def assert_sender_digests(rank: Rank, kernels: Kernels, number: int) -> None:
    wire, kept = _totals(kernels, number)
    assert wire == wire_digests(rank.program.rounds[number], rank.slots[number]).tolist()
    assert not any(kept)


def assert_receiver_digests(rank: Rank, kernels: Kernels, number: int) -> None:
    item, slot = rank.program.rounds[number], rank.slots[number]
    wire, kept = _totals(kernels, number)
    wanted = transformed_digests(item, slot) + written_digests(item, rank.buffers)
    assert wire == wire_digests(item, slot).tolist()
    assert kept == wanted.tolist()
    assert wire == kept


def _totals(kernels: Kernels, number: int) -> tuple[list[int], list[int]]:
    first, last = kernels.digests.first[number : number + 2]
    wire, kept = totals(kernels, first, last)
    return wire, kept


def totals(kernels: Kernels, first: int, last: int) -> list[list[int]]:
    """Return two digests each of some messages: of what was on the wire, and of what was kept."""
    return cast(list[list[int]], kernels.digests.totals()[:, first:last].tolist())


def assert_step(
    plan: TransferPlan, sender: Buffers, expected: Buffers, *, shift: int = 0
) -> Buffers:
    """Run a step by kernels and in plain torch: slots and memory must be equal, and as expected.

    Returns what the receivers hold.
    """
    held, wanted = placed(sender, shift), placed(expected, shift)
    found, reference = blanked(wanted), blanked(wanted)
    slots = by_kernels(plan, held, found)
    other = by_torch(plan, held, reference)
    wrong = {
        "what senders hold": different(held, placed(sender, shift)),
        "torch": different(reference, wanted),
        "kernels": different(found, wanted),
        "slots": [
            number
            for number, (own, others) in enumerate(zip(slots, other, strict=True))
            if not all(torch.equal(*pair) for pair in zip(own, others, strict=True))
        ],
    }
    assert not any(wrong.values()), wrong
    return found


def quantized(
    dense: Tensor,
    scaling: Scaling,
    formula: str,
    code_dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor]:
    """Quantize a whole tensor on a grid that starts with it."""
    return quantize(
        dense,
        scaling.block,
        formula=formula,
        code_dtype=code_dtype,
        scale_dtype=torch_dtype(scaling.dtype),
    )


# --- values -------------------------------------------------------------------------------------


def code_multiples(
    shape: Ints, block: Block, code_dtype: torch.dtype = torch.float8_e4m3fn, seed: int = 0
) -> Tensor:
    """Draw values that every formula turns into codes without rounding, float32.

    Every block is a power of two times finite normal codes, the largest one among them. So all
    quotients are codes, and every scale is that power of two.
    """
    generator = torch.Generator().manual_seed(seed)
    smallest, largest = (0x08, 0x7E) if code_dtype == torch.float8_e4m3fn else (0x04, 0x7B)
    codes = torch.randint(smallest, largest + 1, shape, generator=generator)
    codes += 128 * torch.randint(0, 2, shape, generator=generator)
    codes[torch.rand(shape, generator=generator) < 0.1] = 0
    values = codes.to(torch.uint8).view(code_dtype).float()
    for cell in cells(shape, block):
        part = values[cell]
        part[(-1,) * part.ndim] = LARGEST[code_dtype]
        part *= 2.0 ** int(torch.randint(-4, 5, (), generator=generator))
    return values


def cells(shape: Ints, block: Block, origin: Ints | None = None) -> Iterator[tuple[slice, ...]]:
    """Yield the cells of a grid of `block` that has a corner at `origin`, row-major."""
    dims = [
        _cuts(size, size if length == "all" else length, start)
        for size, length, start in zip(shape, block, origin or (0,) * len(shape), strict=True)
    ]
    yield from product(*dims)


def _cuts(size: int, length: int, start: int) -> list[slice]:
    inner = [at for at in range(1, size) if (at - start) % length == 0]
    return [slice(*pair) for pair in pairwise([0, *inner, size])]


def upstream(
    x: Tensor, formula: str, code_dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[Tensor, Tensor]:
    """Quantize rows `[cells, elements]` as the sources of the formulas write it.

    Right on CUDA, where `amax / 448.0` multiplies by the reciprocal, and for finite values only.
    """
    largest = LARGEST[code_dtype]
    amax = x.abs().float().amax(dim=1, keepdim=True).clamp(1e-4)
    scale = amax / largest
    if formula == "divide":
        return (x.float() / scale).to(code_dtype), scale
    if formula == "rescale":
        return (x.float() * (largest / amax)).to(code_dtype), scale
    if formula == "power_of_two":
        bits = scale.view(torch.int32)
        exponent = ((bits >> 23) & 0xFF) + (bits & 0x7FFFFF).bool().int()
        scale = (exponent.clamp(1, 254) << 23).view(torch.float32)
    return (x.float() * (1.0 / scale)).to(code_dtype), scale


def upstream_cells(
    dense: Tensor, block: Block, origin: Ints, formula: str, code_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Quantize a tensor cell by cell with `upstream`; scales float32, one per cell, in a row."""
    codes = torch.empty(dense.shape, dtype=torch.uint8, device=dense.device)
    scales: list[Tensor] = []
    for cell in cells(tuple(dense.shape), block, origin):
        found, scale = upstream(dense[cell].reshape(1, -1), formula, code_dtype)
        codes[cell] = found.view(torch.uint8).view(dense[cell].shape)
        scales.append(scale.reshape(()))
    return codes.view(code_dtype), torch.stack(scales)

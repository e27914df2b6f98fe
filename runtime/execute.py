"""Programs on torch tensors, job by job: on any device, and on all ranks in one process.

This is what kernels are compared with. It moves whole boxes through strided views and leaves the
arithmetic to `quantization.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tranship.runtime.dtypes import bits_dtype, torch_dtype
from tranship.runtime.jobs import DTYPES, FORMULA_NAMES, NOWHERE, SLOT, Fragments, JobOp, Jobs
from tranship.runtime.program import Program, RoundProgram, program
from tranship.runtime.quantization import cell_amax, dequantize, quantize
from tranship.schema.manifest import Side
from tranship.schema.plan import TransferPlan

Recipe: TypeAlias = Callable[..., None]
"""Recomputes a derived buffer: called with its tensor, then with those of its inputs."""

_NO_SLOT = torch.empty(0, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the numbers in tables stand for: a rank's buffers, and the slot of a round."""

    buffers: Sequence[Tensor]
    slot: Tensor = _NO_SLOT

    def view(
        self, where: int, dtype: torch.dtype, offset: int, sizes: list[int], strides: list[int]
    ) -> Tensor:
        """Return elements in buffer `where`, the first `offset` bytes from its first element.

        Raises:
            RuntimeError: they do not all lie in the buffer's storage.
        """
        if where == SLOT:
            whole = self.slot[: len(self.slot) // dtype.itemsize * dtype.itemsize].view(dtype)
        else:
            whole = self.buffers[where].detach().view(dtype)
        start = whole.storage_offset() + offset // dtype.itemsize
        return whole.as_strided(sizes, strides, start)


def pack(round_program: RoundProgram, buffers: Sequence[Tensor], slot: Tensor) -> None:
    """Write what a sender rank sends in a round to its slot.

    Args:
        round_program: The round, of a sender's program.
        buffers: One tensor per `Program.buffers`, of the dtype there; only its first element and
            its storage count, not its shape.
        slot: uint8 `[slot_size]`, aligned to 8 bytes. Padding is left as it is.
    """
    run_jobs(round_program.jobs, round_program.fragments, Memory(buffers, slot))


def unpack(round_program: RoundProgram, buffers: Sequence[Tensor], slot: Tensor) -> None:
    """Write what a receiver rank was sent in a round to its buffers; arguments as in `pack`."""
    run_jobs(round_program.jobs, round_program.fragments, Memory(buffers, slot))


def run_fills(receiver: Program, buffers: Sequence[Tensor]) -> None:
    """Write the constants that the plan puts into a receiver's buffers; `buffers` as in `pack`."""
    memory = Memory(buffers)
    for job in receiver.fills:
        target = target_view(job, memory)
        target.copy_(torch.tensor(float(job["value"])).to(target.dtype))


def run_jobs(jobs: Jobs, fragments: Fragments, memory: Memory) -> None:
    """Run all jobs but fills."""
    for job in jobs:
        if job["op"] in (JobOp.QUANTIZE, JobOp.AMAX):
            _run_by_blocks(job, fragments, memory)
        else:
            _run_by_elements(job, fragments, memory)


def _run_by_elements(job: np.void, fragments: Fragments, memory: Memory) -> None:
    """Copy, cast or dequantize each fragment to its place."""
    bitwise = job["op"] == JobOp.COPY
    target = target_view(job, memory, bitwise=bitwise)
    for fragment in _range(job, "fragment", fragments):
        place = target[_slices(fragment["start"], fragment["extent"])]
        if fragment["scale"] == NOWHERE:
            place.copy_(_elements(fragment, memory, bitwise=bitwise))
        else:
            place.copy_(_dequantized(fragment, memory, target.dtype))


def _run_by_blocks(job: np.void, fragments: Fragments, memory: Memory) -> None:
    """Quantize the compute box and write the wanted part, or write amaxes."""
    block, phase = _grid(job["block"], job["phase"], job["extent"])
    values = torch.empty(job["extent"].tolist(), device=memory.slot.device)
    for fragment in _range(job, "fragment", fragments):
        scaled = fragment["scale"] != NOWHERE
        read = _dequantized if scaled else _converted
        place = values[_slices(fragment["start"], fragment["extent"])]
        place.copy_(read(fragment, memory, torch.float32))
    if job["op"] == JobOp.AMAX:
        _write_scales(job, cell_amax(values, block, origin=phase), memory)
        return
    codes, scales = quantize(
        values,
        block,
        formula=FORMULA_NAMES[int(job["formula"])],
        code_dtype=_dtype(job["target_dtype"]),
        scale_dtype=_dtype(job["scale_dtype"]),
        origin=phase,
        amax=_given_amax(job, fragments, memory),
    )
    target_view(job, memory).copy_(codes[_slices(job["inner_start"], job["inner_extent"])])
    _write_scales(job, scales, memory)


def _given_amax(job: np.void, fragments: Fragments, memory: Memory) -> Tensor | None:
    """Return the amax of every block of the job as amax edges brought it, if they did."""
    if job["amax_count"] == 0:
        return None
    amax = torch.zeros(
        _counts(job["block"], job["phase"], job["extent"]), device=memory.slot.device
    )
    for fragment in _range(job, "amax", fragments):
        place = amax[_slices(fragment["start"], fragment["extent"])]
        place.copy_(torch.maximum(place, _elements(fragment, memory)))
    return amax


def _write_scales(job: np.void, scales: Tensor, memory: Memory) -> None:
    if np.all(job["scale_counts"] > 0):
        place = memory.view(
            int(job["scale_target"]),
            _dtype(job["scale_dtype"]),
            int(job["scale_offset"]),
            job["scale_counts"].tolist(),
            job["scale_strides"].tolist(),
        )
        place.copy_(scales[_slices(job["scale_first"], job["scale_counts"])])


def target_view(job: np.void, memory: Memory, *, bitwise: bool = False) -> Tensor:
    """Return the elements that a job writes, as integers of equal size if `bitwise`."""
    return memory.view(
        int(job["target"]),
        _dtype(job["target_dtype"], bitwise=bitwise),
        int(job["target_offset"]),
        job["inner_extent"].tolist(),
        job["target_strides"].tolist(),
    )


def _elements(fragment: np.void, memory: Memory, *, bitwise: bool = False) -> Tensor:
    return memory.view(
        int(fragment["source"]),
        _dtype(fragment["dtype"], bitwise=bitwise),
        int(fragment["offset"]),
        fragment["extent"].tolist(),
        fragment["strides"].tolist(),
    )


def _converted(fragment: np.void, memory: Memory, dtype: torch.dtype) -> Tensor:
    return _elements(fragment, memory).to(dtype)


def _dequantized(fragment: np.void, memory: Memory, dtype: torch.dtype) -> Tensor:
    grid = fragment["scale_block"], fragment["scale_phase"], fragment["extent"]
    scales = memory.view(
        int(fragment["scale"]),
        _dtype(fragment["scale_dtype"]),
        int(fragment["scale_offset"]),
        _counts(*grid),
        fragment["scale_strides"].tolist(),
    )
    block, phase = _grid(*grid)
    return dequantize(_elements(fragment, memory), scales, block, dtype=dtype, origin=phase)


def _range(job: np.void, kind: str, fragments: Fragments) -> Fragments:
    first = int(job[f"{kind}_first"])
    return fragments[first : first + int(job[f"{kind}_count"])]


def _dtype(number: int, *, bitwise: bool = False) -> torch.dtype:
    return bits_dtype(DTYPES[number]) if bitwise else torch_dtype(DTYPES[number])


Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]


def _slices(start: Vector, extent: Vector) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(start.tolist(), extent.tolist(), strict=True))


def _counts(block: Vector, phase: Vector, extent: Vector) -> list[int]:
    """Return how many blocks a box touches in each dim."""
    return ((phase + extent - 1) // block + 1).tolist()


def _grid(
    block: Vector, phase: Vector, extent: Vector
) -> tuple[list[int | Literal["all"]], list[int]]:
    """Return block sizes and origin for `quantization.py`, which pads boxes to whole blocks.

    A dim that touches one block only is called "all", and needs no padding.
    """
    counts = _counts(block, phase, extent)
    blocks: list[int | Literal["all"]] = [
        "all" if count == 1 else size for count, size in zip(counts, block.tolist(), strict=True)
    ]
    return blocks, phase.tolist()


def simulate(
    plan: TransferPlan,
    sender_buffers: Mapping[int, Mapping[str, Tensor]],
    receiver_buffers: Mapping[int, Mapping[str, Tensor]],
    recipes: Mapping[str, Recipe],
) -> None:
    """Run a whole step of all ranks in this process, round after round.

    Args:
        plan: A plan that the verifier passes.
        sender_buffers: For every sender rank its tensors by name.
        receiver_buffers: For every receiver rank its tensors by name; these are written.
        recipes: For every recipe that the plan names, what runs it.
    """
    senders = _ranks(plan, Side.SENDER, sender_buffers)
    receivers = _ranks(plan, Side.RECEIVER, receiver_buffers)
    for receiver in receivers:
        run_fills(receiver.program, receiver.buffers)
    for number in range(len(plan.rounds)):
        for sender in senders:
            pack(sender.program.rounds[number], sender.buffers, sender.slot(number))
        for receiver in receivers:
            _deliver(number, receiver, senders)
            unpack(receiver.program.rounds[number], receiver.buffers, receiver.slot(number))
            _derive(number, receiver, receiver_buffers[receiver.program.rank], recipes)


@dataclass(frozen=True, slots=True)
class _Rank:
    program: Program
    buffers: list[Tensor]
    staging: Tensor

    def slot(self, number: int) -> Tensor:
        """Return the slot of a round."""
        item = self.program.rounds[number]
        return self.staging[item.slot_offset : item.slot_offset + item.slot_size]


def _ranks(
    plan: TransferPlan, side: Side, buffers: Mapping[int, Mapping[str, Tensor]]
) -> list[_Rank]:
    declared = plan.sender if side is Side.SENDER else plan.receiver
    ranks: list[_Rank] = []
    for rank in range(declared.world_size):
        expanded = program(plan, side, rank)
        own = [buffers[rank][use.name] for use in expanded.buffers]
        ranks.append(_Rank(expanded, own, torch.zeros(expanded.staging_bytes, dtype=torch.uint8)))
    return ranks


def _deliver(number: int, receiver: _Rank, senders: list[_Rank]) -> None:
    """Copy the messages of a round from the senders' slots to the receiver's.

    Raises:
        ValueError: the two ends of a message do not agree on it.
    """
    for message in receiver.program.rounds[number].messages:
        sender = senders[message.peer]
        sent = sender.program.rounds[number].messages
        source = next(item for item in sent if item.peer == receiver.program.rank)
        if source.size != message.size:
            raise ValueError(f"round {number}: {source.size} bytes sent, {message.size} expected")
        place = receiver.slot(number)[message.offset : message.offset + message.size]
        place.copy_(sender.slot(number)[source.offset : source.offset + source.size])


def _derive(
    number: int, receiver: _Rank, buffers: Mapping[str, Tensor], recipes: Mapping[str, Recipe]
) -> None:
    for call in receiver.program.derived:
        if call.after_round == number:
            recipes[call.recipe](buffers[call.buffer], *(buffers[name] for name in call.inputs))

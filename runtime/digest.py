"""Digests that prove delivery: of what is sent, and of what is found where it should be.

The digest of a message is 64 bits. Each of its parts (`RoundProgram.parts`) is read as
little-endian words of 8 bytes, the last one filled up with zero bytes. A word `w` that starts at
byte `8 * p` of the message adds `mix(w + (p + 1) * 0x9E3779B97F4A7C15)`, where

    mix(z):  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
             z = (z ^ (z >> 27)) * 0x94D049BB133111EB
             return z ^ (z >> 31)

and all arithmetic is modulo 2 ** 64 on unsigned numbers. (This is SplitMix64: Steele, Lea, Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014.) Padding between parts adds nothing.
Digests are sums, so words may be added in any order, and digests of parts add up.

A lost, changed, moved or stale word goes unnoticed about once in 2 ** 64 times, unless someone
wants it to. On the receiver, for every message,

    wire_digests of the sender == written_digests + transformed_digests, modulo 2 ** 64

proves more than arrival:

- parts that the receiver copies (values, codes, scales) are read back from its buffers, at any time
  before they change. Equality proves that the elements of the buffers hold what the sender packed;
- parts that the receiver casts or quantizes leave no copy behind, and are read in the slot, after
  the unpack and before the next round takes the slot. Equality proves that the right input lay
  there; that the right result was written, only doing the arithmetic again would show.

Of packed scales (`packed.py`) those bytes are read back that were received, before an engine's
memory repeats them; that every word there is the right one is found by comparing all of them.

That the sender packed the right elements is the verifier's to prove, not a digest's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tranship.runtime.execute import Memory, target_view
from tranship.runtime.jobs import JobOp, Jobs
from tranship.runtime.program import RoundProgram
from tranship.schema.expression import IntArray

_WORD = 8
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST_FACTOR = 0xBF58476D1CE4E5B9 - 2**64
_SECOND_FACTOR = 0x94D049BB133111EB - 2**64


def wire_digests(round_program: RoundProgram, slot: Tensor) -> IntArray:
    """Digest the messages of a round as they lie in the slot of either end.

    Args:
        round_program: The round.
        slot: uint8 `[slot_size]`, packed or received.

    Returns:
        int64 `[messages]`: the 64 bits of each digest.
    """
    return _slot_digests(round_program, slot, np.arange(len(round_program.parts)))


def transformed_digests(round_program: RoundProgram, slot: Tensor) -> IntArray:
    """Digest only those parts that a receiver casts or quantizes; otherwise as `wire_digests`."""
    copied = _part_of(round_program, _copies(round_program))
    others = np.setdiff1d(np.arange(len(round_program.parts)), copied)
    return _slot_digests(round_program, slot, others)


def written_digests(round_program: RoundProgram, buffers: Sequence[Tensor]) -> IntArray:
    """Digest the parts that a receiver copies, as they lie in its buffers now.

    Args:
        round_program: The round, of a receiver's program.
        buffers: One tensor per `Program.buffers`.

    Returns:
        int64 `[messages]`: the 64 bits of each digest.
    """
    digests = np.zeros(len(round_program.messages), dtype=np.int64)
    jobs = _copies(round_program)
    for job, part in zip(jobs, _part_of(round_program, jobs).tolist(), strict=True):
        elements = target_view(job, Memory(buffers), bitwise=True)
        payload = elements.new_empty(elements.numel()).copy_(elements.reshape(-1))
        _add(digests, round_program, part, payload.view(torch.uint8))
    return digests


def _copies(round_program: RoundProgram) -> Jobs:
    return round_program.jobs[round_program.jobs["op"] == JobOp.COPY]


def _part_of(round_program: RoundProgram, jobs: Jobs) -> IntArray:
    """Return which part of the round each of a receiver's copies reads, `[jobs]`."""
    offsets = round_program.fragments["offset"][jobs["fragment_first"]]
    return np.searchsorted(round_program.parts["offset"], offsets).astype(np.int64)


def _slot_digests(round_program: RoundProgram, slot: Tensor, parts: IntArray) -> IntArray:
    digests = np.zeros(len(round_program.messages), dtype=np.int64)
    for part in parts.tolist():
        offset, size = (int(round_program.parts[name][part]) for name in ("offset", "size"))
        _add(digests, round_program, part, slot[offset : offset + size])
    return digests


def _add(digests: IntArray, round_program: RoundProgram, part: int, payload: Tensor) -> None:
    """Add the digest of a part with the bytes `payload` to that of its message."""
    message = int(round_program.parts["message"][part])
    offset = int(round_program.parts["offset"][part]) - round_program.messages[message].offset
    filled_up = payload.new_zeros(-(-len(payload) // _WORD) * _WORD)
    filled_up[: len(payload)] = payload
    words = filled_up.view(torch.int64)
    first = offset // _WORD + 1
    positions = torch.arange(first, first + len(words), device=words.device)
    # NumPy lets sums in arrays wrap, but warns of those of single numbers.
    digests[message : message + 1] += int(_mix(words + positions * _GOLDEN).sum())


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift_right(words, 30)) * _FIRST_FACTOR
    words = (words ^ _shift_right(words, 27)) * _SECOND_FACTOR
    return words ^ _shift_right(words, 31)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift in zeros; `>>` of signed numbers repeats the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)

"""Between GPUs of one host: senders write messages into the memory that receivers unpack.

Copy engines do it, which are faster than kernels and take no processor from them. The ends count
rounds for one another, each in words of the other's memory, where streams wait for them: that the
message of a round has come, and that its memory may be written again.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from tranship.runtime.sharing import cuda_calls
from tranship.runtime.sharing.channel import ChannelError
from tranship.runtime.sharing.cuda_calls import CudaError
from tranship.runtime.transports.cuda_ipc import meet_on_one_host
from tranship.runtime.transports.links import WORD_BYTES, Link, Party, link_all
from tranship.runtime.transports.meeting import Meeting
from tranship.runtime.transports.protocol import (
    Gathered,
    Meanwhile,
    Parcel,
    TransportError,
    World,
    nothing,
)
from tranship.schema.manifest import Side

_AHEAD = 2**30
"""Above all counts that anybody waits for, and not so far that int32 would wrap."""

_given_up: list[object] = []
"""Memory that a late peer may write yet, of transports that have given up: never given back."""


@dataclass(slots=True)
class CudaPushTransport:
    """One rank's end. Exchanges are enqueued; nothing on the host waits for them."""

    world: World
    side: Side
    rank: int
    device: torch.device
    timeout: float
    meeting: Meeting
    _links: dict[int, Link] = field(default_factory=dict[int, Link])
    _words: Tensor | None = None
    _memory: list[Tensor] = field(default_factory=list[Tensor])
    _own_stream: int = 0
    _broken: bool = False
    _rounds: int = 0
    _steps: int = 0

    def refusal(self, device: torch.device) -> str | None:
        """Refuse all memory but that of the GPU that is connected."""
        if device != self.device:
            return f"cuda_push sends from the memory of {self.device}, not of {device}"
        return None

    def gather(self, payload: str, meanwhile: Meanwhile = nothing) -> Gathered:
        """Give every rank the texts of all."""
        return self.meeting.talk.gather(payload, meanwhile)

    def connect(
        self, sends: Sequence[Sequence[Parcel]], receives: Sequence[Sequence[Parcel]]
    ) -> None:
        """Map the peers' words, and on a sender the memory of what they receive.

        Raises:
            DiagnosticError: TS816, memory cannot be shared; TS817, it cannot be mapped; TS818.
            TransportError: a peer is gone.
        """
        size = max(self.world.senders, self.world.receivers)
        words = torch.zeros(size, dtype=torch.int32, device=self.device)
        # Nobody may count before the words are zero.
        cuda_calls.synchronize(self.device)
        own = Party(
            self.world, self.side, self.rank, self.device, self.timeout, self.meeting, words
        )
        try:
            with cuda_calls.current(self.device):
                self._own_stream = cuda_calls.new_stream()
            self._links = link_all(own, sends if self.side is Side.SENDER else receives)
        except (ChannelError, CudaError, OSError) as error:
            raise TransportError(f"no connection with a peer: {error}") from error
        finally:
            self.meeting.stop_listening()
        self._words, self._rounds, self._steps = words, len(sends), 0
        self._memory = [parcel.memory for parcels in receives for parcel in parcels]

    def exchange(self, number: int, sends: Sequence[Parcel], receives: Sequence[Parcel]) -> None:
        """Enqueue a round on the current stream: copies to others, or waiting for theirs.

        Raises:
            TransportError: a call of CUDA failed, or a peer is not connected.
        """
        if self._broken:
            raise TransportError("an earlier step was given up; connect and bind anew")
        self._steps += number == 0
        stream = self._stream()
        try:
            for parcel in receives:
                self._link(parcel.peer)
                cuda_calls.wait_value(stream, self._word(parcel.peer), self._count(number))
            # Every sender begins with another receiver: into each there is but one way.
            for parcel in sorted(sends, key=self._is_before):
                self._send(stream, number, parcel)
        except CudaError as error:
            raise TransportError(f"cuda_push: {error}") from error

    def release(self, number: int) -> None:
        """Let senders write the memory of a round again, after what the current stream does.

        Raises:
            TransportError: a call of CUDA failed.
        """
        try:
            for link in self._links.values():
                cuda_calls.write_value(self._stream(), link.word, self._count(number))
        except CudaError as error:
            raise TransportError(f"cuda_push: {error}") from error

    def disconnect(self) -> None:
        """Unmap the peers' memory."""
        with ExitStack() as stack:
            if self._own_stream:
                stack.callback(cuda_calls.close_stream, self._own_stream)
                self._own_stream = 0
            for link in self._links.values():
                stack.callback(link.mapped.close)
            self._links.clear()

    def abandon(self) -> None:
        """Let go on what waits for a peer here, which is then found to have failed.

        It waits for nothing itself: the GPU may be late for reasons of its own.
        """
        self._broken = True
        _given_up.extend([self._words, *self._memory])
        if self._words is not None:
            with suppress(CudaError), cuda_calls.current(self.device):
                for peer in self._links:
                    ahead = self._count(self._rounds) + _AHEAD
                    cuda_calls.write_value(self._own_stream, self._word(peer), ahead)

    def _send(self, stream: int, number: int, parcel: Parcel) -> None:
        link = self._link(parcel.peer)
        if (after := link.after[number]) >= 0:
            cuda_calls.wait_value(stream, self._word(parcel.peer), self._count(after))
        source, size = parcel.memory.data_ptr(), parcel.memory.numel()
        cuda_calls.copy(stream, link.memory[number], source, size)
        cuda_calls.write_value(stream, link.word, self._count(number))

    def _is_before(self, parcel: Parcel) -> bool:
        """Whether a parcel comes after those to this rank's number and above."""
        return parcel.peer < self.rank

    def _count(self, number: int) -> int:
        """Return how many rounds were begun, over all steps, once this one is."""
        return (self._steps - 1) * self._rounds + number + 1

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream

    def _word(self, peer: int) -> int:
        """Return the address of the word in which `peer` counts."""
        assert self._words is not None
        return self._words.data_ptr() + peer * WORD_BYTES

    def _link(self, peer: int) -> Link:
        if peer not in self._links:
            raise TransportError(f"rank {peer} of the other side is not connected any more")
        return self._links[peer]


def connect_cuda_push(
    store: Store,
    world: World,
    side: Side,
    rank: int,
    device: torch.device,
    timeout: float = 300.0,
) -> CudaPushTransport:
    """Meet all other ranks, which must be on this host; every rank of both sides must call it.

    Where weights are quantized, half as many bytes go from GPU to GPU as with `cuda_ipc`, whose
    receivers read the weights before that; and ranks hold staging memory. That a rank is gone is
    found `timeout` seconds after it was needed.

    Args:
        store: A store that all ranks reach, such as a `TCPStore`; nobody else may use it.
        world: Both sides' sizes.
        side: This rank's side.
        rank: This rank, within its side.
        device: This rank's GPU; others may have the same.
        timeout: How long a rank may keep the others waiting, in seconds.

    Raises:
        TransportError: not all ranks came in time, or they are not on one host.
    """
    meeting = meet_on_one_host(store, world, world.member(side, rank), device, timeout)
    return CudaPushTransport(world, side, rank, device, timeout, meeting)

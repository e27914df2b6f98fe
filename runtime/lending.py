"""Memory that a sender lends to ranks of its host, which map it once and read it in every step.

In a step the sender records an event before the ranks agree, so that a borrower on the same GPU
waits for it there; nothing else orders the two. If a borrower is on another GPU, the sender waits
for its own GPU before it agrees: a stream that waits for an event of another process and another
GPU crashes the process (driver 580.159.04, with torch's events and with CUDA's own calls).
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tranship.runtime.addresses import BufferUse
from tranship.runtime.bind import find_moved, location
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.messages import Finding, failed, told
from tranship.runtime.replay import Endpoint
from tranship.runtime.sharing.channel import ChannelError
from tranship.runtime.sharing.cuda_calls import device_uuid
from tranship.runtime.sharing.descriptors import close_all
from tranship.runtime.sharing.events import SharedEvent
from tranship.runtime.sharing.mapping import Mapped, open_offer
from tranship.runtime.sharing.offer import Offer, make_offer
from tranship.runtime.sharing.sockets import connect
from tranship.runtime.sharing.watch import Watch, watch
from tranship.runtime.streams import wait_for
from tranship.runtime.transports.meeting import Meeting
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.manifest import Frozen, Side


class Request(Frozen):
    """Asks a sender for its memory, to be mapped for the GPU with this UUID."""

    device: str


class Share(Frozen):
    """What a sender gives a borrower: its memory, and the handle of an event, in hex.

    Without an offer it has none to give, and tells all ranks why.
    """

    offer: Offer | None = None
    event: str = ""


class Lender:
    """A sender's end."""

    def __init__(self, end: Endpoint) -> None:
        self._end, self._device = end, end.bound.device
        self._event = torch.cuda.Event(interprocess=True)
        self._watch: Watch | None = None
        self._apart = False

    def lend(self, meeting: Meeting, borrowers: int) -> list[Finding]:
        """Give every borrower what it asks for, or tell it that there is nothing."""
        descriptors: list[int] = []
        share, findings = Share(), list[Finding]()
        try:
            if borrowers:
                own = self._end.program
                named = dict(zip((use.name for use in own.buffers), self._end.buffers, strict=True))
                offer, descriptors = make_offer(named, location(own.side, own.rank))
                self._watch = watch(named.values())
                share = Share(offer=offer, event=self._event.ipc_handle().hex())
        except Exception as error:
            close_all(descriptors)
            descriptors = []
            findings += failed("sharing memory", error)
        try:
            for _ in range(borrowers):
                self._answer(meeting, share, descriptors)
        except ChannelError as error:
            findings += failed("sharing memory", error)
        finally:
            close_all(descriptors)
            meeting.stop_listening()
        return findings

    def _answer(self, meeting: Meeting, share: Share, descriptors: list[int]) -> None:
        timeout = self._end.transport.timeout
        with closing(meeting.listener.accept(timeout)) as channel:
            request, _ = channel.receive(Request, timeout)
            self._apart |= share.offer is not None and request.device != share.offer.device
            channel.send(share, descriptors)

    def prepare(self) -> tuple[Diagnostic, ...]:
        """Record that the weights are as they are to be published."""
        try:
            self._event.record(torch.cuda.current_stream(self._device))
            if self._apart:
                wait_for(self._event, self._end.transport.timeout)
        except (RuntimeError, TimeoutError) as error:
            where = location(Side.SENDER, self._end.program.rank)
            return (Diagnostic("TS838", f"waiting for the weights failed: {error}", where),)
        return ()

    def check(self) -> Iterator[Finding]:
        """Yield what is no longer the memory that was lent."""
        for found in find_moved(self._end.bound):
            yield told(found)
        if self._watch is not None and not self._watch.unchanged():
            message = "memory that receivers have mapped was given back and allocated anew"
            yield Finding(code="TS819", message=message, help=_REBIND)


_REBIND = "bind both sides anew, and keep weights allocated while they are bound"


@dataclass(frozen=True, slots=True)
class Loan:
    """A borrower's end. The event is of a sender on the same GPU; others wait by themselves."""

    mapped: Mapped
    event: SharedEvent | None

    def views(self, uses: Sequence[BufferUse]) -> list[Tensor]:
        """Return the memory of buffers, each from its first element on; empty ones have none."""
        return [_view(self.mapped, use) for use in uses]

    def hold(self, stream: torch.cuda.Stream) -> None:
        """Let a stream wait until the weights are as they are to be published."""
        if self.event is not None:
            self.event.hold(stream)

    def close(self) -> None:
        """Unmap the memory."""
        self.mapped.close()
        if self.event is not None:
            self.event.close()


def borrow(socket: Path, device: torch.device, timeout: float) -> Loan | None:
    """Map the memory of the sender that listens at `socket`, unless it has none to give.

    Raises:
        ChannelError: it is gone.
        DiagnosticError: TS817, its memory cannot be mapped; TS818.
    """
    with closing(connect(socket, timeout)) as channel:
        channel.send(Request(device=device_uuid(device)))
        share, descriptors = channel.receive(Share, timeout)
    if share.offer is None:
        return None
    mapped = open_offer(share.offer, descriptors, device)
    if mapped.source != mapped.device:
        return Loan(mapped, None)
    try:
        return Loan(mapped, SharedEvent(bytes.fromhex(share.event), device))
    except BaseException:
        mapped.close()
        raise


def _view(mapped: Mapped, use: BufferUse) -> Tensor:
    dtype = torch_dtype(use.dtype)
    if use.name not in mapped:
        return torch.empty(0, dtype=dtype, device=mapped.device)
    return mapped.memory(use.name).view(dtype)

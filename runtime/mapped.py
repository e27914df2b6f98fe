"""Steps of ranks that map memory: the receiver reads what the sender holds, in a launch or two.

At binding every sender offers the memory of its buffers, and an event, to each receiver that takes
something from it. In a step the sender records the event before the ranks agree, so that a receiver
on the same GPU waits for it there; nothing else orders the two. If a receiver is on another GPU,
the sender waits for its own GPU before it agrees: a stream that waits for an event of another
process and another GPU crashes the process (driver 580.159.04, with torch's events and with CUDA's
own calls).

No message can be digested where none is packed. What receivers keep is digested whole, and the
sender packs a sample of each message, other jobs in every step, and digests that: equality proves
that the engine's buffers hold what the sender makes of its own memory. Whether the memory that was
mapped is still the sender's is looked at in every step.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tranship.runtime.addresses import BufferUse
from tranship.runtime.bind import find_moved, location
from tranship.runtime.deliveries import hex_digest
from tranship.runtime.direct import GROUPS, direct, outgoing
from tranship.runtime.dtypes import torch_dtype
from tranship.runtime.errors import DistributedError
from tranship.runtime.kernels.mapped import (
    DirectKernels,
    SampleKernels,
    bind_direct,
    bind_samples,
)
from tranship.runtime.messages import ALL_ROUNDS, Delivery, Finding, told
from tranship.runtime.program import program
from tranship.runtime.replay import Endpoint, Replay, derive, misrepeated
from tranship.runtime.sharing.channel import Channel, ChannelError, connect
from tranship.runtime.sharing.cuda_calls import device_uuid
from tranship.runtime.sharing.descriptors import close_all
from tranship.runtime.sharing.events import SharedEvent
from tranship.runtime.sharing.mapping import Mapped, open_offer
from tranship.runtime.sharing.offer import Offer, make_offer
from tranship.runtime.sharing.watch import Watch, watch
from tranship.runtime.step import conclude_binding
from tranship.runtime.streamed import finish, on_device, wait_for
from tranship.runtime.transports.cuda_ipc import CudaIpcTransport
from tranship.schema.diagnostics import Diagnostic, DiagnosticError
from tranship.schema.manifest import Frozen, Side


class Request(Frozen):
    """Asks a sender for its memory, to be mapped for the GPU with this UUID."""

    device: str


class Share(Frozen):
    """What a sender gives a receiver: its memory, and the handle of an event, in hex.

    Without an offer it has none to give, and tells all ranks why.
    """

    offer: Offer | None = None
    event: str = ""


class MappedSender:
    """Offers memory once; in a step records an event, and packs a sample for comparison."""

    def __init__(self, end: Endpoint, transport: CudaIpcTransport) -> None:
        self._end, self._device = end, end.bound.device
        self._receivers = end.program.peers
        self._watch: Watch | None = None
        self._samples: SampleKernels | None = None
        self._apart = False
        self._done = Replay()
        with on_device(self._device):
            self._event = torch.cuda.Event(interprocess=True)
            self._finished = torch.cuda.Event()
            findings = [*self._offer(transport), *self._bind()]
        conclude_binding(end, findings)

    def _offer(self, transport: CudaIpcTransport) -> list[Finding]:
        """Give every receiver what it asks for, or tell it that there is nothing."""
        descriptors: list[int] = []
        share, findings = Share(), list[Finding]()
        try:
            if self._receivers:
                named = _named(self._end.program.buffers, self._end.buffers)
                where = location(Side.SENDER, self._end.program.rank)
                offer, descriptors = make_offer(named, where)
                self._watch = watch(named.values())
                share = Share(offer=offer, event=self._event.ipc_handle().hex())
        except Exception as error:
            findings += _told(error)
        try:
            for _ in self._receivers:
                self._answer(transport, share, descriptors)
        except ChannelError as error:
            findings += _told(error)
        finally:
            close_all(descriptors)
        return findings

    def _answer(self, transport: CudaIpcTransport, share: Share, descriptors: list[int]) -> None:
        channel = transport.meeting.listener.accept(transport.timeout)
        request, _ = channel.receive(Request, transport.timeout)
        self._apart |= share.offer is not None and request.device != share.offer.device
        channel.send(share, descriptors)
        channel.close()

    def _bind(self) -> list[Finding]:
        try:
            sent = [outgoing(self._end.program, receiver) for receiver in self._receivers]
            if self._end.buffers:
                self._samples = bind_samples(sent, self._end.buffers)
        except Exception as error:
            return _told(error)
        return []

    def prepare(self) -> tuple[Diagnostic, ...]:
        """Record that the weights are as they are to be published."""
        self._event.record(torch.cuda.current_stream(self._device))
        if self._apart:
            wait_for(self._event, self._end.transport.timeout)
        return ()

    def begin(self, version: int) -> None:
        """Pack a sample.

        So it is done before receivers begin: a GPU runs the kernels of one process at a time, and
        going from one to the other takes time.
        """
        self._done = Replay()
        if self._samples is not None:
            with on_device(self._device):
                self._done.attempt("enqueue", self._samples.run, version % GROUPS)
        self._finished.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Do nothing: receivers unmap what they have mapped."""

    def run(self, version: int) -> Replay:
        """Wait for the sample, while the receivers read.

        Whether memory is still what was bound is looked at only now: for thousands of tensors it
        takes longer than the rest of what a host does in a step, and no harm is done.
        """
        del version
        done = self._done
        with done.timed("check"):
            done.findings += self._check()
        finish(done, self._finished, self._end.transport.timeout)
        if not done.findings and self._samples is not None:
            done.deliveries = tuple(
                Delivery(round=ALL_ROUNDS, peer=peer, wire=hex_digest(int(digest)))
                for peer, digest in zip(self._receivers, self._samples.totals.host, strict=True)
            )
        return done

    def _check(self) -> Iterator[Finding]:
        for found in find_moved(self._end.bound):
            yield told(found)
        if self._watch is not None and not self._watch.unchanged():
            message = "memory that receivers have mapped was given back and allocated anew"
            yield Finding(code="TS819", message=message, help=_REBIND)


_REBIND = "bind both sides anew, and keep weights allocated while they are bound"


class MappedReceiver:
    """Maps the senders' memory once; in a step waits for their events, and writes its buffers."""

    def __init__(self, end: Endpoint, transport: CudaIpcTransport) -> None:
        self._end, self._device = end, end.bound.device
        self._senders = end.program.peers
        self._mapped: list[Mapped] = []
        self._events: list[SharedEvent] = []
        self._kernels: DirectKernels | None = None
        findings: list[Finding] = []
        try:
            with on_device(self._device):
                for rank in self._senders:
                    self._map(transport, rank)
                if len(self._mapped) == len(self._senders):
                    self._bind()
        except Exception as error:
            findings += _told(error)
        try:
            conclude_binding(end, findings)
        except DistributedError:
            self.close()
            raise

    def _map(self, transport: CudaIpcTransport, rank: int) -> None:
        channel: Channel = connect(transport.socket(rank), transport.timeout)
        try:
            channel.send(Request(device=device_uuid(self._device)))
            share, descriptors = channel.receive(Share, transport.timeout)
        finally:
            channel.close()
        if share.offer is None:
            return
        mapped = open_offer(share.offer, descriptors, self._device)
        self._mapped.append(mapped)
        if mapped.source == mapped.device:
            handle = bytes.fromhex(share.event)
            self._events.append(SharedEvent(handle, self._device))

    def _bind(self) -> None:
        senders = [program(self._end.plan, Side.SENDER, rank) for rank in self._senders]
        jobs = direct(self._end.program, senders)
        sources = [
            [_view(mapped, use) for use in uses]
            for mapped, uses in zip(self._mapped, jobs.sources, strict=True)
        ]
        if self._end.buffers:
            end = self._end
            self._kernels = bind_direct(jobs, end.buffers, sources, self._device, end.packed)
        self._stream = torch.cuda.Stream(self._device)
        self._begun, self._finished = torch.cuda.Event(), torch.cuda.Event()

    def prepare(self) -> tuple[Diagnostic, ...]:
        """Look at whether memory is still what was bound, and make ready for the step."""
        self._begun.record(torch.cuda.current_stream(self._device))
        self._stream.wait_event(self._begun)
        if self._kernels is not None:
            with torch.cuda.stream(self._stream):
                self._kernels.totals.clear()
        return find_moved(self._end.bound)

    def begin(self, version: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Unmap the senders' memory."""
        for mapped in reversed(self._mapped):
            mapped.close()
        for event in self._events:
            event.close()
        self._mapped.clear()
        self._events.clear()
        self._kernels = None

    def run(self, version: int) -> Replay:
        """Write all buffers from the senders' memory."""
        done = Replay()
        group = version % GROUPS
        with torch.cuda.stream(self._stream):
            done.attempt("enqueue", self._enqueue, group)
            derive(self._end, done)
        self._finished.record(self._stream)
        finish(done, self._finished, self._end.transport.timeout)
        if not done.findings:
            if self._kernels is not None:
                done.findings += misrepeated(self._kernels.packed.differing())
            done.deliveries = tuple(self._deliveries(group))
        return done

    def _enqueue(self, group: int) -> None:
        if len(self._mapped) != len(self._senders):
            raise RuntimeError("the session is closed")
        for event in self._events:
            event.hold(self._stream)
        if self._kernels is not None:
            self._kernels.run(group)

    def _deliveries(self, group: int) -> Iterator[Delivery]:
        if self._kernels is None:
            return
        found = self._kernels.totals.host.reshape(-1, GROUPS)
        for rank, own in zip(self._senders, found, strict=True):
            sample = hex_digest(own[group])
            whole = hashlib.sha256(own.tobytes()).hexdigest()
            yield Delivery(round=ALL_ROUNDS, peer=rank, wire=sample, written=sample, whole=whole)


def _named(uses: Sequence[BufferUse], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {use.name: tensor for use, tensor in zip(uses, tensors, strict=True)}


def _view(mapped: Mapped, use: BufferUse) -> Tensor:
    """Return the memory of a buffer from its first element on; an empty one has none."""
    dtype = torch_dtype(use.dtype)
    if use.name not in mapped:
        return torch.empty(0, dtype=dtype, device=mapped.device)
    return mapped.memory(use.name).view(dtype)


def _told(error: Exception) -> list[Finding]:
    if isinstance(error, DiagnosticError):
        return [told(diagnostic) for diagnostic in error.diagnostics]
    reason = f"{type(error).__name__}: {error}"
    return [Finding(code="TS838", message=f"sharing memory failed: {reason}")]

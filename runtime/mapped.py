"""Steps of ranks that map memory: the receiver reads what the sender holds, in a launch or two.

No message can be digested where none is packed. What receivers keep is digested whole, and the
sender packs a sample of each message, other jobs in every step, and digests that: equality proves
that the engine's buffers hold what the sender makes of its own memory. Whether the memory that was
mapped is still the sender's is looked at in every step.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import torch

from tranship.runtime.bind import find_moved
from tranship.runtime.deliveries import hex_digest
from tranship.runtime.direct import GROUPS, direct, outgoing
from tranship.runtime.kernels.mapped import (
    DirectKernels,
    SampleKernels,
    bind_direct,
    bind_samples,
)
from tranship.runtime.lending import Lender, Loan, borrow
from tranship.runtime.messages import ALL_ROUNDS, Delivery, Finding, failed
from tranship.runtime.program import program
from tranship.runtime.replay import Endpoint, Replay, Replayer, derive, misrepeated
from tranship.runtime.step import conclude_binding, rehearse
from tranship.runtime.streams import finish, on_device
from tranship.runtime.transports.cuda_ipc import CudaIpcTransport
from tranship.schema.diagnostics import Diagnostic
from tranship.schema.manifest import Side


class MappedSender(Replayer):
    """Lends its memory once; in a step packs a sample for comparison."""

    def __init__(self, end: Endpoint, transport: CudaIpcTransport) -> None:
        self._end, self._device = end, end.bound.device
        self._receivers = end.program.peers
        self._samples: SampleKernels | None = None
        self._group: int | None = None
        self._done = Replay()
        with on_device(self._device):
            self._lender = Lender(end)
            self._finished = torch.cuda.Event()
            findings = self._lender.lend(transport.meeting, len(self._receivers))
            findings += self._bind()
        conclude_binding(end, findings)

    def _bind(self) -> list[Finding]:
        try:
            sent = [outgoing(self._end.program, receiver) for receiver in self._receivers]
            if self._end.buffers:
                self._samples = bind_samples(sent, self._end.buffers)
        except Exception as error:
            return failed("binding samples", error)
        return []

    def prepare(self, version: int) -> tuple[Diagnostic, ...]:
        """Record that the weights are as they are to be published."""
        found = self._lender.prepare()
        self._group = None if found else version % GROUPS
        return found

    def begin(self) -> None:
        """Pack a sample, most of it before receivers begin.

        A GPU runs the kernels of one process at a time, and going from one to the other takes time.
        """
        self._done = Replay()
        with on_device(self._device):
            if self._samples is not None and self._group is not None:
                self._done.attempt("enqueue", self._samples.run, self._group)
            here = torch.cuda.current_stream(self._device)
            self._done.attempt("enqueue", self._finished.record, here)

    def run(self, version: int) -> Replay:
        """Wait for the sample, while the receivers read.

        Whether memory is still what was bound is looked at only now: for thousands of tensors it
        takes longer than the rest of what a host does in a step. Receivers are torn if it is not.
        """
        del version
        done = self._done
        with done.timed("check"):
            done.findings += self._lender.check()
        finish(done, self._finished, self._end.transport.timeout)
        if not done.findings and self._samples is not None:
            done.deliveries = tuple(
                Delivery(round=ALL_ROUNDS, peer=peer, wire=hex_digest(digest))
                for peer, digest in zip(self._receivers, self._samples.totals.host, strict=True)
            )
        return done


class MappedReceiver(Replayer):
    """Maps the senders' memory once; in a step waits for their events, and writes its buffers."""

    def __init__(self, end: Endpoint, transport: CudaIpcTransport) -> None:
        self._end, self._device = end, end.bound.device
        self._senders = end.program.peers
        self._loans: list[Loan] = []
        self._kernels: DirectKernels | None = None
        transport.meeting.stop_listening()
        findings: list[Finding] = []
        try:
            with on_device(self._device):
                self._finished = torch.cuda.Event()
                findings += self._borrow(transport)
                if len(self._loans) == len(self._senders):
                    self._bind()
        except Exception as error:
            findings += failed("mapping memory", error)
        try:
            conclude_binding(end, findings)
        except BaseException:
            self.close()
            raise

    def _borrow(self, transport: CudaIpcTransport) -> list[Finding]:
        """Ask all senders, each of which waits for it, even if some memory is not to be had."""
        findings: list[Finding] = []
        for rank in self._senders:
            try:
                loan = borrow(transport.socket(rank), self._device, transport.timeout)
            except Exception as error:
                findings += failed(f"mapping memory of sender rank {rank}", error)
            else:
                self._loans += [loan] if loan else []
        return findings

    def _bind(self) -> None:
        senders = [program(self._end.plan, Side.SENDER, rank) for rank in self._senders]
        jobs = direct(self._end.program, senders)
        sources = [loan.views(uses) for loan, uses in zip(self._loans, jobs.sources, strict=True)]
        if self._end.buffers:
            end = self._end
            self._kernels = bind_direct(jobs, end.buffers, sources, self._device, end.packed)

    def prepare(self, version: int) -> tuple[Diagnostic, ...]:
        """Look at whether memory is still what was bound."""
        del version
        return find_moved(self._end.bound)

    def close(self) -> None:
        """Unmap the senders' memory."""
        with ExitStack() as stack:
            for loan in self._loans:
                stack.callback(loan.close)
            self._loans.clear()
        self._kernels = None

    def run(self, version: int) -> Replay:
        """Write all buffers from the senders' memory, on the current stream."""
        done = Replay()
        group = version % GROUPS
        with on_device(self._device):
            done.attempt("enqueue", self._enqueue, group)
            derive(self._end, done)
            self._finished.record(torch.cuda.current_stream(self._device))
        timeout = self._end.transport.timeout
        finish(done, self._finished, timeout, partial(self._rehearse, group))
        if not done.findings:
            self._look(done, group)
        return done

    def _rehearse(self, group: int) -> None:
        """Go through what comes when the GPU is done; what is seen yet means nothing."""
        done = Replay()
        self._look(done, group)
        rehearse(self._end, done)

    def _look(self, done: Replay, group: int) -> None:
        """Read what the GPU has found."""
        if self._kernels is not None:
            done.findings += misrepeated(self._kernels.packed.differing())
        done.deliveries = tuple(self._deliveries(group))

    def _enqueue(self, group: int) -> None:
        here = torch.cuda.current_stream(self._device)
        for loan in self._loans:
            loan.hold(here)
        if self._kernels is not None:
            self._kernels.run(group)

    def _deliveries(self, group: int) -> Iterator[Delivery]:
        if self._kernels is None:
            return
        found = self._kernels.found(group)
        for rank, (own, all_of_it) in zip(self._senders, found, strict=True):
            sample, whole = hex_digest(own), hex_digest(all_of_it)
            yield Delivery(round=ALL_ROUNDS, peer=rank, wire=sample, written=sample, whole=whole)

"""Steps of a sender whose messages the receiver on its GPU packs and sends."""

from tranship.runtime.lending import Lender
from tranship.runtime.replay import Endpoint, Replay, Replayer
from tranship.runtime.step import conclude_binding
from tranship.runtime.streams import on_device
from tranship.runtime.transports.nccl import LentTransport
from tranship.schema.diagnostics import Diagnostic


class LentSender(Replayer):
    """Lends its memory to its neighbor once; in a step it is sure to be where it was."""

    def __init__(self, end: Endpoint, transport: LentTransport) -> None:
        with on_device(end.bound.device):
            self._lender = Lender(end)
            findings = self._lender.lend(transport.meeting, 1 if end.buffers else 0)
        conclude_binding(end, findings)
        # The others have connected since.
        conclude_binding(end, ())

    def prepare(self, version: int) -> tuple[Diagnostic, ...]:
        """Record that the weights are as they are to be published."""
        del version
        return self._lender.prepare()

    def run(self, version: int) -> Replay:
        """Look at whether memory is still what was bound, while the neighbor reads it."""
        del version
        done = Replay()
        with done.timed("check"):
            done.findings += self._lender.check()
        return done

"""Which way a rank replays: with torch, with kernels, or in memory that is mapped."""

from tranship.runtime.replay import Endpoint, Replayer, RoundReplayer
from tranship.runtime.transports.cuda_ipc import CudaIpcTransport
from tranship.runtime.transports.nccl import LentTransport, NcclTransport
from tranship.runtime.transports.protocol import MessageTransport
from tranship.schema.manifest import Side


def replayer(end: Endpoint) -> Replayer:
    """Bind the way of replaying that fits the transport and the memory of `end`.

    Raises:
        DiagnosticError: memory cannot be shared, or mapped.
        DistributedError: binding failed on another rank.
    """
    transport = end.transport
    # Kernels are imported where they are needed: triton is not to be had on every platform.
    if isinstance(transport, CudaIpcTransport):
        from tranship.runtime.mapped import MappedReceiver, MappedSender

        sends = end.program.side is Side.SENDER
        return MappedSender(end, transport) if sends else MappedReceiver(end, transport)
    if isinstance(transport, LentTransport):
        from tranship.runtime.lent import LentSender

        return LentSender(end, transport)
    if not isinstance(transport, MessageTransport):
        raise TypeError(f"{type(transport).__name__} neither exchanges messages nor maps memory")
    if end.bound.device.type == "cuda":
        from tranship.runtime.streamed import StreamReplayer

        neighbor = transport.neighbor if isinstance(transport, NcclTransport) else None
        return StreamReplayer(end, transport, neighbor)
    return RoundReplayer(end, transport)

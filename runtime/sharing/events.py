"""Events of other processes on the same GPU."""

import torch

from tranship.runtime.sharing import cuda_calls


class SharedEvent:
    """An event of another process on `device`."""

    def __init__(self, handle: bytes, device: torch.device) -> None:
        self._device = device
        with cuda_calls.current(device):
            self._event = cuda_calls.open_event(handle)

    def hold(self, stream: torch.cuda.Stream) -> None:
        """Let `stream` wait for what the event was last recorded after."""
        cuda_calls.hold_stream(stream.cuda_stream, self._event)

    def close(self) -> None:
        """Give the event back."""
        with cuda_calls.current(self._device):
            cuda_calls.close_event(self._event)

"""What steps on a GPU share: the current device, and waiting for events."""

import time
from contextlib import AbstractContextManager, nullcontext

import torch

from tranship.runtime.messages import Finding
from tranship.runtime.replay import Replay


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one: kernels are loaded and launched there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def finish(done: Replay, event: torch.cuda.Event, timeout: float) -> bool:
    """Wait for `event`, and return whether it came; that it did not is a finding."""
    try:
        with done.timed("wait"):
            wait_for(event, timeout)
    except (RuntimeError, TimeoutError) as error:
        done.findings.append(Finding(code="TS838", message=f"wait failed: {error}"))
        return False
    return True


def wait_for(event: torch.cuda.Event, timeout: float) -> None:
    """Wait until the GPU has come to `event`.

    It looks at the event all the time: a pause between two looks is as long as a timer's tick,
    which on virtual machines may be milliseconds.

    Raises:
        TimeoutError: it has not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not event.query():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the GPU was not done within {timeout:g} s")

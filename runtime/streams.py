"""What steps on a GPU share: the current device, and waiting for events."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from tranship.runtime.bind import location
from tranship.runtime.messages import Finding
from tranship.runtime.replay import Endpoint, Replay
from tranship.schema.diagnostics import Diagnostic

SPIN = 1.0
"""Seconds for which the host looks whether the GPU is done without sleeping."""
_PAUSE = 0.001


def over(end: Endpoint, reason: str) -> tuple[Diagnostic, ...]:
    """Return why no step can be run any more."""
    where = location(end.program.side, end.program.rank)
    return (Diagnostic("TS838", reason, where, help="connect the ranks and bind them anew"),)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one: kernels are loaded and launched there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _idle() -> None:
    """Do nothing."""


def finish(
    done: Replay, event: torch.cuda.Event, timeout: float, meanwhile: Callable[[], None] = _idle
) -> bool:
    """Wait for `event`, and return whether it came; that it did not is a finding.

    `meanwhile` is called time and again.
    """
    try:
        with done.timed("wait"):
            wait_for(event, timeout, meanwhile)
    except (RuntimeError, TimeoutError) as error:
        done.findings.append(Finding(code="TS838", message=f"wait failed: {error}"))
        return False
    return True


def wait_for(
    event: torch.cuda.Event, timeout: float, meanwhile: Callable[[], None] = _idle
) -> None:
    """Wait until the GPU has come to `event`.

    For `SPIN` seconds it looks at the event all the time: a pause between two looks is as long as
    a timer's tick, which on virtual machines may be milliseconds.

    Raises:
        TimeoutError: it has not within `timeout` seconds.
    """
    start = time.monotonic()
    while not event.query():
        passed = time.monotonic() - start
        meanwhile()
        if passed > SPIN:
            time.sleep(_PAUSE)
        if passed > timeout:
            raise TimeoutError(f"the GPU was not done within {timeout:g} s")

"""Several channels at once: nobody waits for a slow peer but who has to do with it."""

import os
import select
import time
from collections.abc import Generator, Mapping
from typing import TypeVar

from tranship.runtime.sharing.channel import Channel, ChannelError

K = TypeVar("K")
T = TypeVar("T")

Task = tuple[Channel, Generator[None, None, T]]
"""A channel, and its `reading` or `writing`."""


def receive_all(
    channels: Mapping[K, Channel], timeout: float, *, spin: float = 0.0
) -> tuple[dict[K, bytes], dict[K, ChannelError]]:
    """Receive bytes from all, within `timeout` seconds; see `Channel.receive_bytes`.

    Returns:
        What came, and why nothing came from others, whose channels are closed.
    """
    tasks = {key: (channel, channel.reading()) for key, channel in channels.items()}
    return _run("receiving", select.POLLIN, tasks, timeout, spin)


def send_all(channels: Mapping[K, Channel], data: bytes, timeout: float) -> dict[K, ChannelError]:
    """Send the same bytes to all, within `timeout` seconds.

    Returns:
        Why they did not come to others, whose channels are closed.
    """
    tasks = {key: (channel, channel.writing(data)) for key, channel in channels.items()}
    return _run("sending", select.POLLOUT, tasks, timeout, 0.0)[1]


def _run(
    doing: str, events: int, tasks: Mapping[K, Task[T]], timeout: float, spin: float
) -> tuple[dict[K, T], dict[K, ChannelError]]:
    results: dict[K, T] = {}
    failed: dict[K, ChannelError] = {}
    left = dict(tasks)
    start = time.monotonic()
    while left:
        for key, (channel, task) in list(left.items()):
            try:
                next(task)
                continue
            except StopIteration as done:
                results[key] = done.value
            except (ChannelError, OSError) as error:
                failed[key] = _told(channel, doing, error)
            del left[key]
        passed = time.monotonic() - start
        if passed >= timeout:
            late = {key: _told(each[0], doing, TimeoutError()) for key, each in left.items()}
            return results, failed | late
        if left and passed < spin:
            os.sched_yield()
        elif left:
            _sleep([channel for channel, _ in left.values()], events, timeout - passed)
    return results, failed


def _told(channel: Channel, doing: str, error: Exception) -> ChannelError:
    found = channel.failure(doing, error)
    return found if isinstance(found, ChannelError) else ChannelError(f"{found}")


_LONGEST = 60.0


def _sleep(channels: list[Channel], events: int, seconds: float) -> None:
    """Sleep until one of the channels can be read or written."""
    poll = select.poll()
    for channel in channels:
        poll.register(channel.fileno(), events)
    poll.poll(min(seconds, _LONGEST) * 1e3)

"""Many open file descriptors at once: room for them, and none left over after a failure."""

import os
import resource
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from errno import EMFILE


def allow_descriptors(count: int) -> None:
    """Raise this process's soft limit of open files, where `count` more would pass it.

    The memory of a large model can be thousands of chunks with a descriptor each, and the usual
    soft limit is 1024.

    Raises:
        OSError: EMFILE, the hard limit is too low.
    """
    if not count:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + count
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise OSError(EMFILE, f"{count} more open files are needed, and {hard} are allowed in all")
    # As much as before is left for the files of others.
    wanted = needed + soft if hard == resource.RLIM_INFINITY else min(needed + soft, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def close_all(descriptors: Iterable[int]) -> None:
    """Close file descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


@contextmanager
def closed_on_error() -> Generator[list[int]]:
    """Give a list for descriptors, which are closed if what is done with them fails."""
    descriptors: list[int] = []
    try:
        yield descriptors
    except BaseException:
        close_all(descriptors)
        raise

"""Jobs in forks of a process: the state of an engine is global, and its imports take seconds."""

import os
import sys
import traceback
from collections.abc import Callable, Iterable


def run_forks(jobs: Iterable[Callable[[], None]], at_once: int | None = None) -> int:
    """Do every job in a fork of its own, and return how many have failed.

    A job that raises prints the traceback; the others go on.

    Args:
        jobs: What to do.
        at_once: How many forks may run at the same time; by default as many as there are
            processors.
    """
    most = at_once or os.cpu_count() or 1
    running, failed = 0, 0
    for job in jobs:
        if running == most:
            failed += os.wait()[1] != 0
            running -= 1
        if os.fork() == 0:
            _be(job)
        running += 1
    return failed + sum(os.wait()[1] != 0 for _ in range(running))


def _be(job: Callable[[], None]) -> None:
    """Be the process of one job, and end it."""
    status = 1
    try:
        job()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Neither the parent's cleanup nor its buffers are this process's.
        os._exit(status)

"""Jobs in processes of their own: an engine's state is global, and its imports take seconds."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor


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


def run_commands(commands: Iterable[Sequence[str]], at_once: int | None = None) -> int:
    """Run every command, and return how many have failed; as `run_forks` otherwise."""
    with ThreadPoolExecutor(at_once or os.cpu_count()) as pool:
        return sum(status != 0 for status in pool.map(_run, commands))


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command, check=False).returncode


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

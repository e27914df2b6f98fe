"""Jobs in forks of a process that has imported vLLM: it builds one model per process."""

import os
import sys
import traceback
from collections.abc import Callable


def start(job: Callable[[], None]) -> None:
    """Do a job in a fork."""
    if os.fork() == 0:
        _be(job)


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
        os._exit(status)


def run(job: Callable[[], None]) -> None:
    """Do a job in a fork, and wait for it."""
    start(job)
    if os.wait()[1]:
        sys.exit("a job has failed")

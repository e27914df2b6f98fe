"""A progress bar for what takes longer than a second, on a terminal."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Timer

from tranship.cli.output import console

DELAY_S = 1.0
"""Seconds that a command may take before it shows how far it is."""


@contextmanager
def progress(total: int) -> Generator[Callable[[str], None]]:
    """Yield a function that is to be told the name of each of `total` steps before it starts."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    bar = Progress(*columns, console=console(sys.stderr), transient=True)
    task = bar.add_task("", total=total)
    begun = 0

    def tell(name: str) -> None:
        nonlocal begun
        bar.update(task, description=name, completed=begun)
        begun += 1

    timer = Timer(DELAY_S, bar.start)
    timer.start()
    try:
        yield tell
    finally:
        timer.cancel()
        timer.join()
        bar.stop()

"""A process that answers messages: `python -m tests.runtime.channel_peer SOCKET`."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tranship.runtime.sharing.channel import Channel
from tranship.runtime.sharing.descriptors import close_all
from tranship.runtime.sharing.sockets import connect
from tranship.schema.manifest import Frozen

SECONDS = 20.0
"""More than anything in the tests of channels takes."""


class Note(Frozen):
    text: str
    number: Annotated[int, Field(ge=0)] = 0


def open_descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def answer(channel: Channel) -> None:
    """Answer with what the files hold that came, and leave a mark in each; or die if told to."""
    note, descriptors = channel.receive(Note, SECONDS)
    if note.text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    texts = [os.pread(descriptor, 100, 0).decode() for descriptor in descriptors]
    for descriptor in descriptors:
        os.write(descriptor, b"seen")
    close_all(descriptors)
    channel.send(Note(text="/".join([note.text, *texts]), number=os.getpid()))


if __name__ == "__main__":
    end = connect(Path(sys.argv[1]), SECONDS)
    while True:
        answer(end)

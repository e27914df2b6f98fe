"""Typed messages, and file descriptors, between two processes of one user on one host.

A message is a header, its descriptors in batches, and then a JSON text. Every batch rides on one
byte of its own, so that the kernel hands it over with exactly that byte.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tranship.runtime.sharing.descriptors import allow_descriptors, closed_on_error

MAX_BYTES = 64 * 2**20
"""Most bytes of a message's text."""

BATCH = 200
"""Most descriptors of one sendmsg; Linux takes 253."""

_LONGEST = 86400.0
"""Seconds that are slept at most before the time is looked at again."""

_HEADER = struct.Struct("<QI")
"""Bytes of the text, and the number of descriptors."""

_DESCRIPTOR = struct.Struct("i")

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


class ChannelError(RuntimeError):
    """The other process is gone, late, or sent what cannot be read."""


class Channel:
    """One end of a connection; messages go both ways, by one thread at a time.

    A channel on which sending or receiving failed is closed, for nobody knows where in its bytes
    the next message begins. The socket never blocks, and is waited for only where it would: what
    is there already takes one call of the kernel.
    """

    def __init__(self, connection: socket.socket, peer_pid: int, timeout: float) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._timeout = timeout
        self.peer_pid = peer_pid
        """The process at the other end, in this process's pid namespace; 0 if it is in another."""

    def send(self, message: BaseModel, descriptors: Sequence[int] = ()) -> None:
        """Send a message, and duplicates of open file descriptors, which stay the caller's.

        It takes as long as connecting was allowed to, at most.

        Raises:
            ChannelError: the text is longer than `MAX_BYTES`, or the other process is gone or does
                not read.
        """
        self._send_all(message.model_dump_json().encode(), descriptors)

    def send_bytes(self, data: bytes) -> None:
        """Send a message that is bytes, to be received with `receive_bytes`; see `send`."""
        self._send_all(data, ())

    def _send_all(self, data: bytes, descriptors: Sequence[int]) -> None:
        if len(data) > MAX_BYTES:
            raise ChannelError(f"a message of {len(data):,} bytes is over the limit {MAX_BYTES:,}")
        deadline = Deadline(self._timeout)
        header = _HEADER.pack(len(data), len(descriptors))
        try:
            if not descriptors:
                self._send(header + data, deadline)
                return
            self._send(header, deadline)
            for start in range(0, len(descriptors), BATCH):
                self._send_batch(descriptors[start : start + BATCH], deadline)
            self._send(data, deadline)
        except BaseException as error:
            raise self.failure("sending", error) from None

    def receive_bytes(self, timeout: float, *, spin: float = 0.0) -> bytes:
        """Wait `timeout` seconds for a message that is bytes.

        For the first `spin` seconds the processor is kept busy: waking up a process that sleeps
        took 0.3 ms on a virtual machine.

        Raises:
            ChannelError: nothing came in time, the other process is gone, or descriptors came.
        """
        deadline, task = Deadline(timeout), self.reading()
        awake = time.monotonic() + spin
        try:
            return _finished(task, lambda: self._pause(deadline, awake))
        except BaseException as error:
            raise self.failure("receiving", error) from None

    def reading(self) -> Generator[None, None, bytes]:
        """Receive bytes without waiting: yield where there is nothing yet, return all in the end.

        After an exception `failure` must be called.
        """
        header = yield from self._read(_HEADER.size, begun=False)
        length, count = self._checked_header(header)
        if count:
            raise ChannelError(f"{count} file descriptors came, and none was expected")
        return bytes((yield from self._read(length)))

    def writing(self, data: bytes) -> Generator[None, None, None]:
        """Send bytes without waiting: yield where there is no room yet; see `reading`."""
        return self._write(_HEADER.pack(len(data), 0) + data)

    def fileno(self) -> int:
        """Return the socket's file descriptor, to be waited for."""
        return self._socket.fileno()

    def receive(self, model: type[M], timeout: float) -> tuple[M, list[int]]:
        """Wait `timeout` seconds for a message of the type `model`, and what came with it.

        The descriptors are the caller's to close. They are not inherited by programs run later.

        Raises:
            ChannelError: nothing came in time, the other process is gone, or what came is no such
                message. No descriptor is left open then.
        """
        try:
            with closed_on_error() as descriptors:
                text = self._receive_all(Deadline(timeout), descriptors)
                return model.model_validate_json(text), descriptors
        except ValidationError as error:
            self.close()
            raise ChannelError(f"what came is no {model.__name__}: {_first(error)}") from None
        except BaseException as error:
            raise self.failure("receiving", error) from None

    def _receive_all(self, deadline: "Deadline", descriptors: list[int]) -> bytearray:
        """Receive a text and put what comes with it into `descriptors`."""
        length, count = self._checked_header(self._receive(_HEADER.size, deadline, begun=False))
        allow_descriptors(count)
        while len(descriptors) < count:
            self._receive_batch(descriptors, min(BATCH, count - len(descriptors)), deadline)
        return self._receive(length, deadline)

    def _checked_header(self, header: bytearray) -> tuple[int, int]:
        length, count = _HEADER.unpack(header)
        if length > MAX_BYTES:
            raise ChannelError(f"a message of {length:,} bytes is over the limit {MAX_BYTES:,}")
        return length, count

    def is_open(self) -> bool:
        """Whether neither end has closed the connection, as far as is known here."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Close the connection; the other end finds out when it next waits. May be repeated."""
        self._socket.close()

    def _send(self, data: bytes, deadline: "Deadline") -> None:
        _finished(self._write(data), lambda: self._wait(select.POLLOUT, deadline))

    def _write(self, data: bytes) -> Generator[None, None, None]:
        """Write bytes, and yield where there is no room."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                yield

    def _send_batch(self, descriptors: Sequence[int], deadline: "Deadline") -> None:
        while True:
            try:
                socket.send_fds(self._socket, [b"\0"], descriptors)
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            else:
                return

    def _wait(self, events: int, deadline: "Deadline") -> None:
        """Sleep until the socket can be read or written, or the time is over."""
        poll = select.poll()
        poll.register(self._socket, events)
        # Linux takes no more milliseconds than an int holds.
        poll.poll(min(deadline.left(), _LONGEST) * 1e3)

    def _receive(self, length: int, deadline: "Deadline", *, begun: bool = True) -> bytearray:
        """Read so many bytes; `begun` tells whether the message had begun before."""
        task = self._read(length, begun=begun)
        return _finished(task, lambda: self._wait(select.POLLIN, deadline))

    def _read(self, length: int, *, begun: bool = True) -> Generator[None, None, bytearray]:
        """Read so many bytes, and yield where there is nothing."""
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            try:
                count = self._socket.recv_into(rest)
            except BlockingIOError:
                yield
                continue
            if not count:
                begun = begun or len(rest) < length
                where = " in the middle of a message" if begun else ""
                raise ChannelError(f"process {self.peer_pid} closed the channel{where}")
            rest = rest[count:]
        return data

    def _pause(self, deadline: "Deadline", awake: float) -> None:
        """Let others run until the moment `awake`, and sleep after it."""
        if time.monotonic() < min(awake, deadline.end):
            os.sched_yield()
        else:
            self._wait(select.POLLIN, deadline)

    def _receive_batch(self, descriptors: list[int], count: int, deadline: "Deadline") -> None:
        byte, ancillary = self._receive_ancillary(count, deadline)
        found = list(_descriptors(ancillary))
        descriptors += found
        if not byte:
            raise ChannelError(f"process {self.peer_pid} closed the channel in its descriptors")
        if len(found) != count:
            raise ChannelError(f"of {count} file descriptors {len(found)} came through")

    def _receive_ancillary(
        self, count: int, deadline: "Deadline"
    ) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        # socket.recv_fds takes flags and drops them (CPython 3.11).
        space = socket.CMSG_LEN(count * _DESCRIPTOR.size)
        while True:
            try:
                byte, found, _, _ = self._socket.recvmsg(1, space, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
            else:
                return byte, found

    def failure(self, doing: str, error: BaseException) -> BaseException:
        """Close the channel after `error`, and return what to raise."""
        self.close()
        if isinstance(error, TimeoutError):
            return ChannelError(f"{doing} took too long: process {self.peer_pid} is late")
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            return ChannelError(f"{doing}, with process {self.peer_pid}: {reason}")
        return error


@dataclass(slots=True)
class Deadline:
    """A moment `seconds` from when this is made."""

    seconds: float
    end: float = 0.0

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Return the seconds left.

        Raises:
            TimeoutError: there are none.
        """
        left = self.end - time.monotonic()
        # A timeout of 0 would mean a socket that never waits.
        if left <= 0:
            raise TimeoutError
        return left


def _finished(task: Generator[None, None, T], pause: Callable[[], None]) -> T:
    """Run a task to its end, with a pause wherever it cannot go on; return what it returns."""
    while True:
        try:
            next(task)
        except StopIteration as done:
            return done.value
        pause()


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> Iterator[int]:
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(content) - len(content) % _DESCRIPTOR.size
            yield from (number for (number,) in _DESCRIPTOR.iter_unpack(content[:whole]))


def _first(error: ValidationError) -> str:
    """Say what is wrong first, and where, without the text itself."""
    found = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, found["loc"]))
    return f"{where}: {found['msg']}" if where else found["msg"]

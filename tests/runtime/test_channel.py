"""Messages and descriptors between processes of one user, and everything that can go wrong."""

import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.runtime.channel_peer import SECONDS, Note, open_descriptors
from tranship.runtime.sharing import sockets
from tranship.runtime.sharing.channel import BATCH, MAX_BYTES, Channel, ChannelError
from tranship.runtime.sharing.sockets import Listener, connect, listen, private_directory
from tranship.schema.manifest import Frozen

ROOT = Path(__file__).resolve().parents[2]


class Other(Frozen):
    words: tuple[str, ...]


@pytest.fixture
def listener(tmp_path: Path) -> Generator[Listener]:
    tmp_path.chmod(0o700)
    with closing(listen(tmp_path)) as found:
        yield found


@pytest.fixture
def ends(listener: Listener) -> Generator[tuple[Channel, Channel]]:
    with closing(connect(listener.path, SECONDS)) as one, closing(listener.accept(SECONDS)) as two:
        yield one, two


@pytest.fixture
def raw(listener: Listener) -> Generator[tuple[socket.socket, Channel]]:
    """A plain socket whose other end is a channel."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        plain.connect(str(listener.path))
        with closing(listener.accept(SECONDS)) as end:
            yield plain, end


@pytest.fixture
def peer(listener: Listener) -> Generator[tuple[subprocess.Popen[bytes], Channel]]:
    command = [sys.executable, "-m", "tests.runtime.channel_peer", listener.path]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        with closing(listener.accept(SECONDS)) as end:
            yield process, end
    finally:
        process.kill()
        process.wait()


def header(length: int, descriptors: int = 0) -> bytes:
    """What a message begins with, written out by hand."""
    return struct.pack("<QI", length, descriptors)


def is_closed(plain: socket.socket) -> bool:
    """Whether the other end is closed, perhaps with bytes that it did not read."""
    try:
        return plain.recv(1) == b""
    except ConnectionResetError:
        return True


def memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("content")
    os.write(descriptor, content)
    return descriptor


def test_another_process_answers_message_after_message(
    peer: tuple[subprocess.Popen[bytes], Channel],
) -> None:
    process, end = peer
    assert end.peer_pid == process.pid
    for number in range(100):
        end.send(Note(text=f"message {number}"))
        assert end.receive(Note, SECONDS) == (
            Note(text=f"message {number}", number=process.pid),
            [],
        )


def test_descriptors_are_of_the_same_files_in_another_process(
    peer: tuple[subprocess.Popen[bytes], Channel],
) -> None:
    _, end = peer
    files = [memory_file(b"one"), memory_file(b"two")]
    end.send(Note(text="files"), files)
    assert end.receive(Note, SECONDS)[0].text == "files/one/two"
    # Both processes share one offset: the other one wrote behind what was there.
    assert [os.pread(file, 100, 0) for file in files] == [b"oneseen", b"twoseen"]
    for file in files:
        os.close(file)


def test_a_killed_process_is_gone(peer: tuple[subprocess.Popen[bytes], Channel]) -> None:
    process, end = peer
    end.send(Note(text="die"))
    with pytest.raises(ChannelError, match=rf"process {process.pid} closed the channel$"):
        end.receive(Note, SECONDS)
    with pytest.raises(ChannelError):
        end.send(Note(text="anyone?"))


@pytest.mark.parametrize("count", [1, BATCH, 2 * BATCH + 3])
def test_any_number_of_descriptors_comes_in_order(
    ends: tuple[Channel, Channel], count: int
) -> None:
    one, two = ends
    reading, writing = os.pipe()
    before = open_descriptors()
    one.send(Note(text="many"), [reading, writing] * count)
    found, descriptors = two.receive(Note, SECONDS)
    assert found == Note(text="many")
    assert open_descriptors() == before + 2 * count
    assert not any(map(os.get_inheritable, descriptors))
    os.write(descriptors[-1], b"through")
    assert os.read(descriptors[0], 100) == b"through"
    for descriptor in [*descriptors, reading, writing]:
        os.close(descriptor)


def test_descriptors_beyond_the_soft_limit_come_through(ends: tuple[Channel, Channel]) -> None:
    """In a process of its own, whose limit may be lowered."""
    script = """
import os, resource, socket
from tests.runtime.channel_peer import SECONDS, Note, open_descriptors
from tranship.runtime.sharing.channel import Channel
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 40, hard))
one, two = (Channel(end, os.getpid(), SECONDS) for end in socket.socketpair())
one.send(Note(text="many"), [0] * 39)
assert len(two.receive(Note, SECONDS)[1]) == 39
one.send(Note(text="more"), [0] * 39)
assert len(two.receive(Note, SECONDS)[1]) == 39
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_messages_larger_than_the_socket_go_both_ways(ends: tuple[Channel, Channel]) -> None:
    large = Note(text="x" * (8 << 20))
    with ThreadPoolExecutor(1) as pool:
        echo = pool.submit(lambda: ends[1].send(ends[1].receive(Note, SECONDS)[0]))
        ends[0].send(large)
        assert ends[0].receive(Note, SECONDS) == (large, [])
        echo.result()


def test_what_is_no_such_message_is_refused_with_its_descriptors(
    ends: tuple[Channel, Channel],
) -> None:
    one, two = ends
    before = open_descriptors()
    one.send(Note(text="secret"), [0, 1])
    with pytest.raises(ChannelError) as caught:
        two.receive(Other, SECONDS)
    assert str(caught.value) == "what came is no Other: words: Field required"
    assert open_descriptors() == before - 1  # the channel itself was closed


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (header(4) + b'"\xff"x', "what came is no Note: Invalid JSON"),
        (header(9) + b'{"text":1', "what came is no Note: Invalid JSON"),
        (header(MAX_BYTES + 1), "a message of 67,108,865 bytes is over the limit 67,108,864"),
        (header(2**64 - 1, 2**32 - 1), "over the limit"),
        (header(2, 2**32 - 1), "4294967295 more open files are needed"),
        (header(5)[:7], "closed the channel in the middle of a message"),
        (header(5), "closed the channel in the middle of a message"),
        (header(5) + b"{}", "closed the channel in the middle of a message"),
        (header(2, 1), "closed the channel in its descriptors"),
        (header(2, 1) + b"\0{}", "of 1 file descriptors 0 came through"),
        (b"", "closed the channel$"),
    ],
)
def test_what_a_broken_process_sends_is_refused(
    raw: tuple[socket.socket, Channel], sent: bytes, message: str
) -> None:
    plain, end = raw
    before = open_descriptors()
    plain.sendall(sent)
    plain.shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelError, match=message):
        end.receive(Note, SECONDS)
    assert open_descriptors() == before - 1
    assert is_closed(plain)


def test_an_oversized_length_is_refused_before_its_bytes_are_waited_for(
    raw: tuple[socket.socket, Channel],
) -> None:
    plain, end = raw
    plain.sendall(header(2**40))
    with pytest.raises(ChannelError, match="over the limit"):
        end.receive(Note, SECONDS)


def test_an_oversized_message_is_not_sent(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    with pytest.raises(ChannelError, match="over the limit"):
        one.send(Note(text="x" * MAX_BYTES))
    one.send(Note(text="small"))
    assert two.receive(Note, SECONDS)[0].text == "small"


@pytest.mark.parametrize("sent", [b"", header(2)[:3], header(2) + b"{", header(0, 1)])
def test_a_process_that_stops_sending_is_late(
    raw: tuple[socket.socket, Channel], sent: bytes
) -> None:
    plain, end = raw
    plain.sendall(sent)
    with pytest.raises(ChannelError, match=rf"too long: process {os.getpid()} is late"):
        end.receive(Note, 0.05)
    with pytest.raises(ChannelError):
        end.receive(Note, SECONDS)


def test_a_trickle_does_not_extend_the_wait(raw: tuple[socket.socket, Channel]) -> None:
    plain, end = raw
    stop = threading.Event()

    def trickle() -> None:
        plain.sendall(header(MAX_BYTES))
        while not stop.wait(0.01):
            plain.send(b"x", socket.MSG_NOSIGNAL)

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(trickle)
        with pytest.raises(ChannelError, match="late"):
            end.receive(Note, 0.2)
        stop.set()
        assert sending.exception() is None or isinstance(sending.exception(), OSError)


def test_a_process_that_does_not_read_is_late(listener: Listener) -> None:
    with (
        closing(connect(listener.path, 0.05)) as one,
        closing(listener.accept(SECONDS)),
        pytest.raises(ChannelError, match="sending took too long"),
    ):
        one.send(Note(text="x" * (8 << 20)))


def test_nobody_is_waited_for_without_end(listener: Listener, tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match="waiting for a process"):
        listener.accept(0.05)
    with pytest.raises(ChannelError, match="No such file"):
        connect(tmp_path / "nothing", SECONDS)
    with pytest.raises(ChannelError, match="none came in time"):
        listener.accept(0.0)


def test_a_process_of_another_user_is_turned_away(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.geteuid() + 1

    def credentials(_: socket.socket) -> tuple[int, int]:
        return 4711, other

    monkeypatch.setattr(sockets, "peer_credentials", credentials)
    before = open_descriptors()
    with pytest.raises(ChannelError, match=f"process 4711 is of user {other}"):
        connect(listener.path, SECONDS)
    with pytest.raises(ChannelError, match=f"process 4711 is of user {other}"):
        listener.accept(SECONDS)
    assert open_descriptors() == before


def test_a_listener_leaves_nothing_behind() -> None:
    directory = private_directory()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    first, second = listen(directory), listen(directory)
    assert sorted(directory.iterdir()) == sorted([first.path, second.path])
    for listener in (first, second, first):
        listener.close()
    directory.rmdir()
    with pytest.raises(ChannelError, match="No such file"):
        connect(first.path, SECONDS)
    with pytest.raises(ChannelError, match="is closed, as a session closes it: connect anew"):
        first.accept(SECONDS)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o600])
def test_a_directory_that_others_enter_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ValueError, match=f"mode {mode:04o}: it must be 0700"):
        listen(tmp_path)
    tmp_path.chmod(0o700)


def test_what_is_no_directory_of_this_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "file").touch(0o700)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / ("x" * 100)).mkdir(0o700)
    for name, message in [
        ("file", "is not a directory"),
        ("link", "is not a directory"),
        ("nothing", "No such file"),
        ("x" * 100, "107 bytes at most"),
    ]:
        with pytest.raises(ValueError, match=message):
            listen(tmp_path / name)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ValueError, match=f"belongs to user {owner}, not to {owner + 1}"):
        listen(tmp_path)


def test_a_closed_channel_says_so(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    two.close()
    two.close()
    with pytest.raises(ChannelError, match=r"closed the channel$"):
        one.receive(Note, SECONDS)
    with pytest.raises(ChannelError):
        two.send(Note(text="?"))

"""Sockets at which processes of one user on one host find each other."""

import os
import secrets
import socket
import stat
import struct
import tempfile
from pathlib import Path

from tranship.runtime.sharing.channel import Channel, ChannelError, Deadline

_CREDENTIALS = struct.Struct("iII")
"""`struct ucred`: process, user, group."""

_MAX_PATH = 107
"""Bytes of a socket's path: `sun_path` has 108, with a zero at the end (unix(7))."""

_OWN_PATH = len("/tranship-12345678/0123456789abcdef.sock")
"""Bytes of it that are ours."""


class Listener:
    """A socket that other processes of this user can connect to."""

    def __init__(self, listening: socket.socket, path: Path) -> None:
        self._socket = listening
        self.path = path
        """Where the socket is, to be told to whoever shall connect."""

    def accept(self, timeout: float) -> Channel:
        """Wait `timeout` seconds for a process to connect.

        Raises:
            ChannelError: none came in time, or one of another user came, which was turned away; or
                nobody can come, since it is closed.
        """
        if self._socket.fileno() < 0:
            message = f"{self.path} is closed, as a session closes it: connect anew for another"
            raise ChannelError(message)
        try:
            self._socket.settimeout(Deadline(timeout).left())
            connection, _ = self._socket.accept()
        except OSError as error:
            reason = error.strerror or "none came in time"
            raise ChannelError(f"waiting for a process at {self.path}: {reason}") from None
        return _checked(connection, timeout)

    def close(self) -> None:
        """Stop listening and remove the socket from its directory. May be repeated."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


def private_directory() -> Path:
    """Make a directory for sockets that only this user can enter; the caller removes it.

    It is where temporary files are, unless the paths of sockets would be too long there.
    """
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > _MAX_PATH - _OWN_PATH:
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="tranship-", dir=parent))


def listen(directory: Path) -> Listener:
    """Listen at a fresh name in `directory`.

    Raises:
        ValueError: others can enter the directory, or it is no directory of this user.
    """
    _require_private(directory)
    path = directory / f"{secrets.token_hex(8)}.sock"
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ValueError(f"the path of a socket has {_MAX_PATH} bytes at most, unlike {path}")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(os.fspath(path))
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return Listener(listening, path)


def connect(path: Path, timeout: float) -> Channel:
    """Connect to the process that listens at `path`, within `timeout` seconds.

    Raises:
        ChannelError: nobody listens there, or a process of another user does.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(Deadline(timeout).left())
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise ChannelError(f"connecting to {path}: {error.strerror or 'too late'}") from None
    return _checked(connection, timeout)


def peer_credentials(connection: socket.socket) -> tuple[int, int]:
    """Return process and user of the other end, as they were when it connected, or listened."""
    option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(option)
    return pid, user


def _checked(connection: socket.socket, timeout: float) -> Channel:
    pid, user = peer_credentials(connection)
    if user != os.geteuid():
        connection.close()
        raise ChannelError(f"process {pid} is of user {user}, this one of {os.geteuid()}")
    return Channel(connection, pid, timeout)


def _require_private(directory: Path) -> None:
    try:
        found = directory.lstat()
    except OSError as error:
        raise ValueError(f"{directory} cannot hold a socket: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{directory} is not a directory")
    if found.st_uid != os.geteuid():
        raise ValueError(f"{directory} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if (mode := stat.S_IMODE(found.st_mode)) != 0o700:
        raise ValueError(f"{directory} has mode {mode:04o}: it must be 0700, closed to others")

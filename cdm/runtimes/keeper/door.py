"""Where the next process of a node finds the keeper that outlived the last one: a socket in the runtime's folder.

Nobody is let in but the keeper's own user, and root. Which process may come is decided elsewhere: the node's folder
is locked by one process at a time, and a keeper has one node at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

SOCKET = "keeper"
"""The socket's name, inside the runtime's own folder."""
_CREDENTIALS = struct.Struct("3i")
_PRIVATE = 0o177
_NOBODY = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM)
"""Nobody listens, or nobody that this user may talk to. Whatever else is in the way says nothing about that."""


@contextlib.contextmanager
def _short(folder: str) -> Iterator[str]:
    """The socket's address; not its path, for addresses of sockets must be short."""
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{opened}/{SOCKET}"
    finally:
        os.close(opened)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Pid and user of the process at the other end."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid), int(uid)


def knock(folder: str) -> socket.socket | None:
    """Connect to the keeper that is there, without waiting for it. None: there is none of this user, or of root.

    Args:
        folder: the runtime's own.

    Raises:
        OSError: it cannot be told now: there are no descriptors, for instance, or too many wait there.
    """
    here = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        with _short(folder) as address:
            here.connect(address)
        if peer(here)[1] in (0, os.geteuid()):
            return here
    except OSError as error:
        here.close()
        if error.errno in _NOBODY:
            return None
        raise
    here.close()
    return None


class Door:
    """A keeper's end of it.

    Args:
        folder: the runtime's own.

    Raises:
        OSError: there can be no socket.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, SOCKET)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)  # a dead keeper's: of two that live one is no longer reached, and ends
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        before = os.umask(_PRIVATE)
        try:
            with _short(folder) as address:
                self.socket.bind(address)
            self.socket.listen()
            self._made = os.stat(self._path)
        except BaseException:
            self.socket.close()
            raise
        finally:
            os.umask(before)

    @property
    def stands(self) -> bool:
        """Whether the next process can find it: somebody may have deleted the folder."""
        try:
            return os.path.samestat(self._made, os.stat(self._path))
        except OSError:
            return False

    def admit(self) -> socket.socket | None:
        """Let in who waits there; None: nobody who may."""
        try:
            node, _ = self.socket.accept()
        except OSError:
            return None
        if peer(node)[1] in (0, os.geteuid()):
            return node
        node.close()
        return None

    def close(self) -> None:
        """Let nobody in any more."""
        if self.stands:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self.socket.close()

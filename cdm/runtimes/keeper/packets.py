"""Sends packets without ever waiting: neither end of the socket between node and keeper may hold up the other."""

from __future__ import annotations

import errno
import socket
from collections import deque

_NO_ROOM = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
"""The socket is full, or the machine short of memory."""


class PacketQueue:
    """What is on its way to the other end.

    Args:
        end: our end of the socket; it is made non-blocking.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._packets: deque[bytes] = deque()

    @property
    def waiting(self) -> bool:
        """Whether packets are left: `flush` is to be called once the socket can be written to."""
        return bool(self._packets)

    def send(self, packet: bytes) -> None:
        """Send it after all that was sent before. To an end that is closed by now it is lost; the reader notices."""
        self._packets.append(packet)
        if len(self._packets) == 1:
            self.flush()

    def flush(self) -> None:
        """Send as much as there is room for. Raises `OSError` for a packet that cannot be sent, and is lost."""
        while self._packets:
            packet = self._packets.popleft()
            try:
                self._socket.send(packet)
            except ConnectionError:
                pass
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._packets.appendleft(packet)
                return

"""What the system tells of a connection's socket."""

from __future__ import annotations

import fcntl
import sys
import termios
from contextlib import suppress
from typing import Any


def untaken(line: Any) -> int:
    """Bytes that the system still holds, since the other side has not acknowledged them; 0 where that is not told.

    Args:
        line: the socket, as asyncio gives it away.
    """
    room = bytearray(4)
    with suppress(OSError, ValueError):  # closed, or a kind of socket that does not tell
        fcntl.ioctl(line.fileno(), termios.TIOCOUTQ, room)
    return int.from_bytes(room, sys.byteorder)

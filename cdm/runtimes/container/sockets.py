"""Connections of the HTTP library to a socket of this machine that has a path.

The library's own go by a class of anyio (`UNIXSocketStream`, 4.16) that does not bear being cancelled in the turn of
the event loop in which something comes: the loop then reports an ``InvalidStateError``. These go by the class that
connections over TCP have, which bears it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.abc
import httpcore2

QUEUE_PAUSE = 0.02
"""Seconds between two tries where many want to connect at the same time."""
_LOST = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)


class SocketBackend(httpcore2.AnyIOBackend):
    """Connects to sockets that have a path."""

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the socket there. Raises `ConnectError` and `ConnectTimeout` of the library."""
        own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        own.setblocking(False)
        try:
            with _as(httpcore2.ConnectError, httpcore2.ConnectTimeout), anyio.fail_after(timeout):
                for option in socket_options or ():
                    own.setsockopt(*option)
                await _connected(own, path)
                return _Stream(await anyio.abc.SocketStream.from_socket(own))
        except BaseException:
            own.close()
            raise


async def _connected(own: socket.socket, path: str) -> None:
    while True:
        try:
            own.connect(path)
            return
        except BlockingIOError:  # its queue is full, and nothing tells when it is not
            await anyio.sleep(QUEUE_PAUSE)


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection, as the library wants it."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _as(httpcore2.ReadError, httpcore2.ReadTimeout), anyio.fail_after(timeout):
            try:
                return await self._stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with _as(httpcore2.WriteError, httpcore2.WriteTimeout), anyio.fail_after(timeout):
                await self._stream.send(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        """Whether there is something to read, or the end: whoever keeps a connection for later asks for that."""
        if info != "is_readable":
            return None
        own = self._stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610  # of anyio
        if own.fileno() < 0:
            return True  # it is closed
        poll = select.poll()
        poll.register(own, select.POLLIN)
        return bool(poll.poll(0))


@contextmanager
def _as(lost: type[Exception], late: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except _LOST as error:
        raise lost(str(error)) from error

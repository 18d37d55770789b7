"""Checks whether a program is ready, or alive, over the loopback interface."""

from __future__ import annotations

import asyncio
import errno
import socket
from urllib.parse import quote

import anyio
import anyio.abc

from cdm.model.manifest import Http, Tcp

HOSTS = ("127.0.0.1", "::1")
MAX_STATUS_LINE = 1024
_LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL)
"""No descriptors, no memory, no ports of our own to connect from."""


class CannotAsk(Exception):
    """Raised where the node itself lacks what it takes to ask, which says nothing about the program."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"this node cannot ask: {error.strerror or error}")


def check_asked(error: OSError) -> None:
    """Raises `CannotAsk` if this is no answer, but something that the node itself lacks."""
    if error.errno in _LACKING:
        raise CannotAsk(error) from None


async def probe(check: Tcp | Http, port: int, timeout: float) -> str | None:
    """Check once; returns None if it passed, else what is wrong. Raises `CannotAsk`."""
    port = check.port or port
    with anyio.move_on_after(timeout):
        try:
            stream = await _connect(port)
        except OSError as error:
            check_asked(error)
            reason = error.strerror or str(error)
            return f"port {port}: {reason}"
        async with stream:
            return None if isinstance(check, Tcp) else await _get(stream, check.path, port)
    return f"port {port}: no answer within {timeout:g} s"


async def _connect(port: int) -> anyio.abc.SocketStream:
    problem = OSError(f"nothing listens on port {port}")
    for host in HOSTS:
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            if host == HOSTS[0] or error.errno in _LACKING:
                problem = error
            continue
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
            if sock.getsockname()[:2] == sock.getpeername()[:2]:
                # The kernel may connect a port of the ephemeral range to itself.
                raise ConnectionRefusedError(None, "nothing listens there")  # noqa: TRY301  # as if refused
            return await anyio.abc.SocketStream.from_socket(sock)
        except OSError as error:
            sock.close()
            if host == HOSTS[0]:
                problem = error
        except BaseException:
            sock.close()
            raise
    raise problem


async def _get(stream: anyio.abc.SocketStream, path: str, port: int) -> str | None:
    target = quote(path if path.startswith("/") else f"/{path}", safe="/?&=%+:@!$'()*,;~-._#[]")
    request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: cdm\r\nConnection: close\r\n\r\n"
    try:
        await stream.send(request.encode())
        answer = b""
        while b"\r\n" not in answer and len(answer) < MAX_STATUS_LINE:
            answer += await stream.receive()
    except (anyio.BrokenResourceError, anyio.EndOfStream):
        return f"GET {path} on port {port}: closed without an answer"
    match answer.split(b"\r\n", 1)[0].split():
        case [protocol, code, *_] if protocol.startswith(b"HTTP/1.") and code.isdigit():
            return None if 200 <= int(code) < 400 else f"GET {path} on port {port}: status {code.decode()}"
    return f"GET {path} on port {port}: the answer is not HTTP"

"""HTTP requests, with limits to all of them. Imported when the first check needs it, as its libraries take their time.

Redirects are not followed, proxies of the environment are not used, nothing is sent but the request: no cookies and no
credentials of its own. Certificates are checked against those that this machine trusts.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import httpcore2
from anyio import to_thread

from cdm.checks.names import Resolver
from cdm.version import VERSION

MAX_ADDRESSES = 4
"""How many addresses of one name are tried."""

WEB_ERRORS = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError)
"""What goes wrong with a request."""


class WebAnswer(NamedTuple):
    """What an HTTP server answered."""

    status: int
    body: bytes | None
    """None: longer than was asked for, or not asked for."""
    location: str


class _Backend(httpcore2.AnyIOBackend):
    """Connects one request by addresses: looking up a name may hang for long, and must take nothing else along.

    It closes what it has opened. The library leaves the socket open where it is cancelled in a TLS handshake.
    """

    def __init__(self, resolver: Resolver) -> None:
        super().__init__()
        self._resolver = resolver
        self._opened: httpcore2.AsyncNetworkStream | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = (await self._resolver.resolve(host, port))[:MAX_ADDRESSES]
        each = None if timeout is None else timeout / len(addresses)
        problem: Exception = OSError("there is no address")
        for address in addresses:
            try:
                self._opened = await super().connect_tcp(address, port, each, local_address, socket_options)
                return self._opened
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                problem = error
        raise problem

    async def close(self) -> None:
        """Close the socket, if it is open."""
        if self._opened is not None:
            await self._opened.aclose()


class WebClient:
    """Sends requests, each on a connection of its own."""

    def __init__(self) -> None:
        self._resolver = Resolver()
        self._trusted: ssl.SSLContext | None = None
        self._reading = anyio.Lock()

    async def get(self, url: str, timeout: float, most: int | None) -> WebAnswer:
        """GET an address; as `request`."""
        return await self.request("GET", url, timeout, most)

    async def request(
        self, method: str, url: str, timeout: float, most: int | None, more: Mapping[str, str] = MappingProxyType({})
    ) -> WebAnswer:
        """Send a request without a body. The caller limits the whole time.

        Args:
            method: such as GET.
            url: absolute, of http or https.
            timeout: seconds that connecting may take.
            most: longest body that is read, in bytes; None: none is.
            more: further headers.

        Raises:
            Exception: one of `WEB_ERRORS`: there is no answer, or none in HTTP.
            ValueError: the address cannot be used.
        """
        parts = urlsplit(url)
        secure = parts.scheme.lower() == "https"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        address = httpcore2.URL(
            scheme=b"https" if secure else b"http",
            host=(parts.hostname or "").encode("ascii"),
            port=parts.port or (443 if secure else 80),
            target=target.encode("ascii"),
        )
        headers = [
            (b"Host", parts.netloc.encode("ascii")),
            (b"User-Agent", f"cdm/{VERSION}".encode()),
            (b"Accept", b"*/*"),
            (b"Accept-Encoding", b"identity"),
            (b"Connection", b"close"),
            *([] if method == "GET" else [(b"Content-Length", b"0")]),
            *((name.encode("ascii"), value.encode("ascii")) for name, value in more.items()),
        ]
        backend = _Backend(self._resolver)
        connection = httpcore2.AsyncHTTPConnection(
            address.origin, ssl_context=await self._trust() if secure else None, network_backend=backend
        )
        try:
            limits = {"timeout": {"connect": timeout}}
            async with connection.stream(
                method.encode("ascii"), address, headers=headers, extensions=limits
            ) as response:
                told = [value for name, value in response.headers if name.lower() == b"location"]
                location = told[0].decode("latin-1") if told else ""
                return WebAnswer(response.status, await _body(response, most), location)
        finally:
            with anyio.CancelScope(shield=True):
                await connection.aclose()
                await backend.close()

    async def _trust(self) -> ssl.SSLContext:
        """What certificates are checked against; it is read once, as that takes its time."""
        async with self._reading:
            if self._trusted is None:
                self._trusted = await to_thread.run_sync(httpcore2.default_ssl_context)
            return self._trusted


async def _body(response: httpcore2.Response, most: int | None) -> bytes | None:
    if most is None:
        return None
    read = bytearray()
    async for piece in response.aiter_stream():
        read += piece
        if len(read) > most:
            return None
    return bytes(read)

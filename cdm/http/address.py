"""Where HTTP is served: addresses as they are typed, and the sockets that listen there."""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import NamedTuple

from cdm.errors import AddressTaken, UsageError

DEFAULT_PORT = 8280
DEFAULT = f"127.0.0.1:{DEFAULT_PORT}"
"""Where it is served if nothing else is said: for this machine only, for nobody is asked who they are."""
BACKLOG = 512
"""Connections that wait to be accepted."""
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%\w-]+)\]|(?P<host>[^:\[\]\s/@]*))(?::(?P<port>[0-9]{1,5}))?")


class HttpAddress(NamedTuple):
    """Where to listen."""

    host: str
    """A name or IP address; empty: all addresses of this machine."""
    port: int
    """0: one that is free."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def http_address(text: str) -> HttpAddress:
    """Read ``HOST:PORT``, ``HOST``, or ``:PORT``; raises `UsageError`."""
    found = _ADDRESS.fullmatch(text.strip())
    if not found or not text.strip() or int(port := found["port"] or DEFAULT_PORT) > 65_535:
        raise UsageError(
            f"--http {text!r} (CDM_HTTP) is not an address to listen on: write HOST:PORT, as {DEFAULT}, "
            "or :PORT for all addresses of this machine"
        )
    return HttpAddress(found["six"] or found["host"] or "", int(port))


def listening(address: HttpAddress) -> list[socket.socket]:
    """Sockets that listen there: one for each address that a name stands for.

    Raises:
        AddressTaken: another process listens there.
        UsageError: this machine cannot listen there.
    """
    try:
        found = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--http {address} (CDM_HTTP): {address.host} is no address of this machine: {_why(error)}"
        ) from None
    made: list[socket.socket] = []
    try:
        for family, kind, protocol, _, where in dict.fromkeys(found):
            place = (where[0], made[0].getsockname()[1], *where[2:]) if made and not address.port else where
            made.append(_listening(family, kind, protocol, place))
    except OSError as error:
        for each in made:
            each.close()
        problem = f"--http {address} (CDM_HTTP): {_why(error)}"
        if error.errno == errno.EADDRINUSE:
            raise AddressTaken(f"{problem}; another process listens there, choose another address") from None
        raise UsageError(problem) from None
    return made


def _listening(family: int, kind: int, protocol: int, where: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        made.bind(where)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def shown(sockets: list[socket.socket], *, secure: bool = False) -> str:
    """Where they listen, as URLs; ``secure``: with TLS."""
    scheme = "https" if secure else "http"
    return ", ".join(f"{scheme}://{HttpAddress(*each.getsockname()[:2])}" for each in sockets)


def _why(error: Exception) -> str:
    code = getattr(error, "errno", None)
    return os.strerror(code) if code and code > 0 else str(getattr(error, "strerror", None) or error)

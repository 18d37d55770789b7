"""Looking up the addresses of hosts, in few threads of its own.

A look-up cannot be broken off, and takes as long as the system likes: half a minute where no name server answers. In
the threads that everything else uses it would hold up the connection to NATS, and the end of the process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import suppress
from threading import Thread

THREADS = 8
"""How many names are looked up at once."""


class Resolver:
    """Looks up names; those who ask for the same one at the same time share the answer. Nothing is kept."""

    def __init__(self) -> None:
        self._pending: dict[str, asyncio.Future[list[str]]] = {}
        self._free = asyncio.Semaphore(THREADS)

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a host, at least one.

        Raises:
            OSError: it has none, or nobody says.
        """
        with suppress(ValueError):
            ipaddress.ip_address(host.partition("%")[0])
            return [host]
        pending = self._pending.get(host)
        if pending is None:
            await self._free.acquire()
            # Meanwhile somebody else may have begun.
            pending = self._pending.get(host)
            if pending is None:
                pending = self._pending[host] = self._begin(host, port)
            else:
                self._free.release()
        return await asyncio.shield(pending)

    def _begin(self, host: str, port: int) -> asyncio.Future[list[str]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()

        def done(found: list[str], error: OSError | None) -> None:
            self._free.release()
            del self._pending[host]
            if error is None:
                future.set_result(found)
            else:
                future.set_exception(error)
                future.exception()  # those who asked may have given up

        def look_up() -> None:
            found: list[str] = []
            problem: OSError | None = None
            try:
                entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
            except OSError as error:
                problem = error
            except UnicodeError:
                problem = OSError(f"{host} cannot be the name of a host")
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(done, found, problem)

        try:
            # A daemon: the process does not wait for it at its end.
            Thread(target=look_up, name="cdm name look-up", daemon=True).start()
        except RuntimeError as error:
            self._free.release()
            raise OSError(str(error)) from None
        return future

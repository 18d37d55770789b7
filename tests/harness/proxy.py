"""A way to a server that can be cut, on which bytes can be held back, and connections broken one side at a time."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import SocketAttribute, SocketStream

from tests.harness.servers import NatsServer

BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Proxy:
    """Passes on what clients and a server say to each other. Made by `proxied`."""

    def __init__(self, server: NatsServer, port: int) -> None:
        self.holding = anyio.Event()
        """Set once something is held back."""
        self.shut = False
        """Whether there is no way to the server: clients that connect are turned away at once."""
        self.delay = 0.0
        """Seconds that each piece, of at most 64 KiB, takes to the client: a slow line."""
        self.delay_up = 0.0
        """The same to the server."""
        self._server = server
        self._port = port
        self._pattern: bytes | None = None
        self._clients: set[SocketStream] = set()
        self._whole = anyio.Event()
        """Set while it is not cut."""
        self._whole.set()
        self._released = anyio.Event()
        self._delivered = anyio.Event()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self._port}"

    def hold(self, pattern: bytes) -> None:
        """From the next time on that a client says this, hold back all that it says on that connection."""
        self._pattern = pattern

    def cut(self) -> None:
        """Let nothing through any more, either way, and tell nobody: clients can connect, and are not answered."""
        self._whole = anyio.Event()

    def mend(self) -> None:
        """Let everything through again: what was sent meanwhile arrives now, also of who has hung up since."""
        self._whole.set()

    async def break_connections(self) -> None:
        """Close the clients' sides. What is held back stays, and the server notices nothing."""
        for client in list(self._clients):
            await client.aclose()

    async def release(self) -> None:
        """Deliver what was held back."""
        self._released.set()
        await self._delivered.wait()

    async def serve(self, client: SocketStream) -> None:
        """One client's connection."""
        if self.shut:
            await client.aclose()
            return
        self._clients.add(client)
        await self._whole.wait()
        host, _, port = self._server.url.removeprefix("nats://").partition(":")
        async with client, await anyio.connect_tcp(host, int(port)) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(self._pass_on, server, client)
            if held := await self._pass_on_until_held(client, server):
                await self._released.wait()
                await server.send(held)
                self._delivered.set()
                await anyio.sleep(1)  # what is sent on a connection that ends at once may not be read
            self._clients.discard(client)
            tasks.cancel_scope.cancel()

    async def _pass_on_until_held(self, client: SocketStream, server: SocketStream) -> bytes:
        held = b""
        with suppress(*BROKEN):
            while True:
                data = await client.receive()
                if held or (self._pattern is not None and self._pattern in data):
                    self._pattern = None
                    held += data
                    self.holding.set()
                else:
                    await self._whole.wait()
                    await anyio.sleep(self.delay_up)
                    await server.send(data)
        return held

    async def _pass_on(self, source: SocketStream, target: SocketStream) -> None:
        with suppress(*BROKEN):
            while True:
                data = await source.receive()
                await self._whole.wait()
                await anyio.sleep(self.delay)
                await target.send(data)


@asynccontextmanager
async def proxied(server: NatsServer, room: int | None = None) -> AsyncIterator[Proxy]:
    """A way to the server, for the time of the ``with`` block.

    Args:
        server: where it leads.
        room: about how many bytes it takes in that it has not passed on yet; None: as the system has it.
    """
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        if room is not None:
            listener.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        proxy = Proxy(server, listener.extra(SocketAttribute.local_port))
        tasks.start_soon(listener.serve, proxy.serve)
        yield proxy
        tasks.cancel_scope.cancel()

import asyncio
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from cdm import SliceKey
from cdm.runtimes import Surroundings, Work


class Sites:
    def __init__(self, surroundings: Surroundings) -> None:
        self.crashed = surroundings.crashed  # to be called when a slice that was active ended by itself
        self.loaded: dict[SliceKey, Work] = {}
        self.servers: dict[SliceKey, ThreadingHTTPServer] = {}

    async def start(self) -> None:
        """First of all: nothing of an earlier process may go on running. Nothing of ours does."""

    async def load(self, work: Work) -> None:
        await self.unload(work.key)
        self.loaded[work.key] = work

    async def activate(self, key: SliceKey) -> int | None:
        if key not in self.servers:
            handler = partial(SimpleHTTPRequestHandler, directory=str(self.loaded[key].folder))
            self.servers[key] = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            Thread(target=self.servers[key].serve_forever, args=(0.05,), daemon=True).start()
        return self.servers[key].server_port

    async def deactivate(self, key: SliceKey) -> None:
        if server := self.servers.get(key):
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            self.servers.pop(key, None)

    async def unload(self, key: SliceKey) -> None:
        await self.deactivate(key)
        self.loaded.pop(key, None)

    @property
    def slices(self) -> dict[SliceKey, bool]:
        return {key: key in self.servers for key in self.loaded}

    async def close(self) -> None:
        for key in list(self.servers):
            await self.deactivate(key)

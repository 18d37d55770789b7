"""Regions: a hub, and servers that are leaf nodes of it, each with a JetStream domain of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import nats.errors

from tests.harness.servers import NatsServer, free_port, raw_client, temporary_folder
from tests.harness.waiting import eventually


class Regions(NamedTuple):
    """The servers. Made by `running_regions`."""

    hub: NatsServer
    leaves: dict[str, NatsServer]
    """By the name of the domain."""


@asynccontextmanager
async def running_regions(*domains: str) -> AsyncIterator[Regions]:
    """A hub, and a leaf node for each domain, for the time of the ``with`` block."""
    with temporary_folder() as folder, ExitStack() as stack:
        port = free_port()

        async def start(name: str, leafnodes: object) -> NatsServer:
            own = folder / name
            own.mkdir()
            jetstream = {"store_dir": str(own / "store"), "domain": name}
            config = {"server_name": name, "jetstream": jetstream, "leafnodes": leafnodes}
            (own / "server.conf").write_text(json.dumps(config), encoding="utf-8")
            server = NatsServer(own, jetstream=False, arguments=["-c", str(own / "server.conf")])
            stack.callback(server.kill)
            await server.start()
            return server

        hub = await start("hub", {"listen": f"127.0.0.1:{port}"})
        remotes = {"remotes": [{"url": f"nats-leaf://127.0.0.1:{port}"}], "reconnect": 1}
        leaves = {domain: await start(domain, remotes) for domain in domains}
        async with raw_client(hub.url) as client:
            for domain in domains:

                async def answers(domain: str = domain) -> bool:
                    try:
                        return b'"error"' not in (await client.request(f"$JS.{domain}.API.INFO", b"", timeout=1)).data
                    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
                        return False

                await eventually(answers, 30, f"domain {domain} answers at the hub")
        yield Regions(hub, leaves)


def add_context(home: Path, name: str, **fields: str) -> None:
    """Write a context of the nats tool, as ``nats context add`` does, below a configuration's home."""
    folder = home / "nats" / "context"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(fields), encoding="utf-8")

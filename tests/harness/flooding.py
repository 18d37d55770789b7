"""Somebody with one node's permissions who opens atomic batches all the time, and never ends one.

A server has room for fifty open batches in a stream, and forgets each after ten seconds.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from nats.aio.client import Client

from tests.harness.servers import NatsServer, raw_client, running_server
from tests.harness.waiting import eventually
from tests.harness.wire import Raw, Rejection

RATE = 300
"""Batches that are opened in a second."""
PAUSE = 0.02
CONFIG = """
accounts {
  CDM {
    jetstream: enabled
    users: [
      {user: cluster, password: cluster}
      {user: node, password: node, permissions: {
        publish: ["$KV.slices.n1.>", "$KV.nodes.n1"], subscribe: "_INBOX_n1.>"
      }}
    ]
  }
}
no_auth_user: cluster
"""
"""A server where everybody may do everything, and the user ``node`` what a node may."""


@asynccontextmanager
async def floodable(folder: Path) -> AsyncIterator[NatsServer]:
    """A server with these users."""
    config = folder / "users.conf"
    config.write_text(CONFIG, encoding="utf-8")
    async with running_server(arguments=("-c", str(config))) as server:
        yield server


@asynccontextmanager
async def flood(server: NatsServer, subject: str = "$KV.slices.n1.g/flood/1") -> AsyncIterator[None]:
    """A flood for as long as the ``with`` block; it has begun to be felt when that begins."""
    options = {"user": "node", "password": "node", "inbox_prefix": b"_INBOX_n1"}
    async with (
        raw_client(server.url, **options) as client,
        raw_client(server.url) as user,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_open, client, subject)
        await eventually(lambda: _refused(Raw(user)), what="the server takes no batch")
        yield
        tasks.cancel_scope.cancel()


async def _open(client: Client, subject: str) -> None:
    while True:
        for _ in range(round(RATE * PAUSE)):
            headers = {"Nats-Batch-Id": secrets.token_hex(11), "Nats-Batch-Sequence": "1"}
            await client.publish(subject, b"{}", headers=headers)
        await anyio.sleep(PAUSE)


async def _refused(user: Raw) -> bool:
    """Whether a batch of somebody else is refused."""
    head = {"Nats-Batch-Id": secrets.token_hex(11), "Nats-Batch-Sequence": "1"}
    try:
        await user.put("slices", "n1.g/tried/1", b"", {**head, "Nats-Batch-Commit": "1", "KV-Operation": "DEL"})
    except Rejection as rejection:
        return rejection.code == 10210
    return False

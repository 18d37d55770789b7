"""cdm's own side of a store: a connection, and a watch whose messages are checked one against the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio

from cdm.dispatch import messages
from cdm.model.keys import IntentKey, Layout, NodeKey, SeenKey, encode
from cdm.store.bucket import Bucket
from cdm.store.connection import Access, Connection, connect
from cdm.store.watch import Phase, Watch
from tests.harness.servers import Addressed, NatsServer
from tests.harness.waiting import eventually
from tests.harness.wire import Raw


def connected(server: Addressed, prefix: str = "") -> Any:
    """A connection of cdm's own."""
    return connect(Access(servers=(server.url,)), name="test", prefix=prefix)


class Mirror:
    """Takes a watch's messages, holds what they come to, and checks each against those before."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, int]] = {}
        """``good``, ``value`` or ``key`` and the revision, by key."""
        self.heard: list[messages.Message] = []
        self.resets: list[str] = []
        self.live: list[bool] = []
        self._announced: str | None = None
        """A key that was not known, and was told to be deleted: only a refused value of it may follow."""

    def __call__(self, message: messages.Message) -> None:
        if self._announced is not None:
            assert isinstance(message, messages.ValueRejected)
            assert encode(message.key) == self._announced
            self._announced = None
        self.heard.append(message)
        match message:
            case messages.ValuePut(key, _, revision):
                self._put(encode(key), "good", revision)
            case messages.ValueRejected(key, _, revision):
                self._put(encode(key), "value", revision)
            case messages.KeyRejected(_, name, _, revision):
                self._put(name, "key", revision)
            case messages.ValueRemove(NodeKey() | IntentKey() | SeenKey() as key) if encode(key) not in self.values:
                pass  # of a node that was never known it is told how it went
            case messages.ValueRemove(key):
                self._remove(encode(key), False)
            case messages.RejectedKeyRemoved(_, name):
                self._remove(name, True)
            case _:
                raise AssertionError(f"a watch sends no {message!r}")

    def _put(self, name: str, kind: str, revision: int) -> None:
        known = self.values.get(name)
        if known is not None and not self.resets:
            assert revision > known[1], f"{name} at {revision} was told after {known}"
        self.values[name] = (kind, revision)

    def _remove(self, name: str, key_rejected: bool) -> None:
        if name not in self.values:
            assert not key_rejected
            self._announced = name
            return
        assert (self.values[name][0] == "key") is key_rejected
        del self.values[name]

    def reset(self, reason: str) -> None:
        """The stream is another one."""
        self.resets.append(reason)

    @property
    def revisions(self) -> dict[str, int]:
        """Revision by key."""
        return {name: revision for name, (_, revision) in self.values.items()}

    def names(self, kind: type[messages.Message]) -> list[str]:
        """The keys that messages of this class were about, in order."""
        return [
            message.name if isinstance(message, messages.KeyRejected) else encode(message.key)
            for message in self.heard
            if isinstance(message, (kind)) and isinstance(message, (messages.KeyedMessage, messages.KeyRejected))
        ]


class Watching(NamedTuple):
    """A watch that runs, with its mirror."""

    watch: Watch
    mirror: Mirror
    bucket: Bucket
    connection: Connection

    async def equals(self, user: Raw) -> bool:
        """Whether the mirror is equal to the bucket."""
        contents = await user.contents(self.bucket.layout.name)
        return self.mirror.revisions == {key: record.sequence for key, record in contents.items()}


@asynccontextmanager
async def watching(
    server: NatsServer, layout: Layout, *, create: bool = True, prefix: str = "", **options: Any
) -> AsyncIterator[Watching]:
    """A running watch of a bucket."""
    async with connected(server, prefix) as connection:
        bucket = Bucket(connection, layout)
        if create:
            await bucket.ensure(create=True)
        mirror = Mirror()

        async def recreate() -> None:
            await bucket.ensure(create=True)

        watch = Watch(bucket, mirror, on_live=mirror.live.append, on_reset=mirror.reset, provide=recreate, **options)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await eventually(lambda: watch.phase is Phase.LIVE, what="the watch is live")
            yield Watching(watch, mirror, bucket, connection)
            tasks.cancel_scope.cancel()
